"""A part of a training, up to some epoch, as each Ray Train worker does it; it publishes nothing."""

from typing import Annotated, Any

from pydantic import Field

from data_shards.index import read_index
from trainer.distributed.worker import Post, in_worker
from trainer.specs import TrainSpec
from trainer.training.model_setup import fresh_model
from trainer.training.worker import trained


class LapSpec(TrainSpec):
    """A training that ends after `until_epoch`, on the learning rates of one of all `epochs`."""

    until_epoch: Annotated[int, Field(ge=1)]

    @property
    def last_epoch(self) -> int:
        """Where the lap ends."""
        return self.until_epoch


def lap_on_worker(config: dict[str, Any]) -> Any:
    """Train as `config["order"]` says; the entry point of each Ray Train worker."""
    return in_worker(_lap, config)


def _lap(post: Post) -> int:
    """Train on from the newest checkpoint and return the epoch that was reached."""
    index = read_index(post.order.spec.shards)
    model, config = fresh_model(post, index)
    return trained(post, index, model, config).epoch
