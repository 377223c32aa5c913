"""The training of a refit, as each Ray Train worker does it: on two splits together, with nothing left to judge it."""

from typing import Any

from data_shards.index import BOTH, read_index
from trainer.distributed.worker import Post, in_worker
from trainer.model.bundle import publish_model
from trainer.model.weights import backbone_sha256
from trainer.search.lap_worker import LapSpec
from trainer.training.model_setup import fresh_model
from trainer.training.worker import trained

SPLIT = f"train{BOTH}valid"


class RefitSpec(LapSpec):
    """A training on the train and valid splits together, up to the epoch at which the trial was best."""

    @property
    def split(self) -> str:
        """Both splits."""
        return SPLIT


def refit_on_worker(config: dict[str, Any]) -> Any:
    """Train as `config["order"]` says; the entry point of each Ray Train worker."""
    return in_worker(_refit, config)


def _refit(post: Post) -> int:
    """Publish the model of the last epoch in the order's own folder; return the images that it has learnt from."""
    spec: RefitSpec = post.order.spec
    index = read_index(spec.shards)
    model, config = fresh_model(post, index)
    trained(post, index, model, config)
    if post.ranks.leads:
        config = config.model_copy(update={"backbone_sha256": backbone_sha256(model.backbone)})
        attempt = post.order.attempt
        attempt.lease.check()
        publish_model(attempt.paths.best, model, config, about={"run": attempt.paths.run_id, "data": index.digest})
    post.ranks.meet()
    return index.samples_in(SPLIT)
