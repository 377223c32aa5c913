"""Trains the heads of folds in batches, and scores the images of each fold."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.split_features import SplitFeatures
from trainer.errors import Stopped
from trainer.training.batched_heads import HeadBatch, HeadRows, head_batches, heads_at_once
from trainer.training.fold_assignment import Labels
from trainer.training.head_fit import Floats, HeadFit, head_logits


@dataclass(frozen=True)
class FoldHead:
    """The head that is trained without a fold.

    Attributes:
        repeat, fold: From 0.
        inside, outside: `(n,) int64`, numbers of the images of the fold, and of all others.
        seed: Of its training.
    """

    repeat: int
    fold: int
    inside: Tensor
    outside: Tensor
    seed: int

    @classmethod
    def of(cls, repeat: int, fold: int, folds: Labels, *, seed: int) -> "FoldHead":
        """Return the head for a fold of the images, whose folds are `(N,)`."""
        inside, outside = (torch.from_numpy(np.flatnonzero(mask)) for mask in (folds == fold, folds != fold))
        return cls(repeat, fold, inside, outside, seed)

    @property
    def rows(self) -> HeadRows:
        """What it is trained on."""
        return HeadRows(self.outside, self.seed)


def fold_batches(fit: HeadFit, heads: Sequence[FoldHead]) -> list[list[FoldHead]]:
    """Divide heads into batches that train at once, linear heads into batches of one.

    They depend on nothing but the heads and the kind of device: neither on the number of processes nor on what an
    earlier attempt has finished. So the predictions do not depend on these either.
    """
    if not fit.spec.trains_by_steps:
        return [[head] for head in heads]
    numbers = head_batches(
        [head.rows for head in heads],
        batch_size=fit.spec.batch_size,
        most=heads_at_once(fit.config, fit.spec, fit.device),
    )
    return [[heads[number] for number in batch] for batch in numbers]


def fold_logits(fit: HeadFit, features: SplitFeatures, heads: Sequence[FoldHead]) -> list[Floats]:
    """Train the heads of a batch, and return the logits of each for the images of its fold.

    Raises:
        Stopped: The run was asked to stop.
        TrainingDiverged: A loss is not finite.
        SpecError: A step would have a single image.
    """
    if reason := fit.stop_reason():
        raise Stopped(reason)
    values, labels = features.values, features.labels
    if len(heads) == 1:
        rows = heads[0].rows
        trained = [fit.fit(values.select(rows.rows), labels[rows.rows], seed=rows.seed)]
    else:
        trained = HeadBatch(fit=fit, features=values, labels=labels, heads=[head.rows for head in heads]).train()
    return [
        head_logits(one, values.select(head.inside).to(fit.device)) for one, head in zip(trained, heads, strict=True)
    ]


@contextmanager
def stopped_between_folds() -> Iterator[None]:
    """Say where a cross-validation stops, and what is kept."""
    try:
        yield
    except Stopped as error:
        raise Stopped("stopped between two steps; the predictions of the finished folds are kept") from error
