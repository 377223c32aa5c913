"""The training of a refit, as each Ray Train worker does it: on two splits together, with nothing left to judge it."""

from typing import Annotated, Any

from pydantic import Field

from data_shards.index import BOTH, read_index
from trainer.order import Post, in_worker
from trainer.published import publish_model
from trainer.setup import fresh_model
from trainer.specs import TrainSpec
from trainer.training import trained
from trainer.weights import backbone_sha256

SPLIT = f"train{BOTH}valid"


class RefitSpec(TrainSpec):
    """A training on the train and valid splits together.

    Attributes:
        best_epoch: Of the trial: where this ends, on the learning rates of a training of all `epochs`.
    """

    best_epoch: Annotated[int, Field(ge=1)]

    @property
    def split(self) -> str:
        """Both splits."""
        return SPLIT

    @property
    def last_epoch(self) -> int:
        """Where the trial was best."""
        return self.best_epoch


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
