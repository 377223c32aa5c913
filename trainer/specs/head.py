"""Checks whether a data set allows the head that is requested. Imports neither torch nor ray."""

from data_shards.index import ShardIndex
from trainer.errors import SpecError
from trainer.specs.train import TrainOptions, TrainSpec


def check_head(spec: TrainOptions, index: ShardIndex, shards: str) -> None:
    """Refuse linear discriminant analysis of several labels per image.

    Raises:
        SpecError: It was requested.
    """
    if isinstance(spec, TrainSpec) and spec.head == "lda" and index.multi_label:
        raise SpecError(f"--head lda needs one class per image, and {shards} has several labels; use --head logistic")
