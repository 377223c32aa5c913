"""The steps of a training on features that are on the GPU: they need nothing from the CPU but their start."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards.plan import EpochPlan
from trainer.data.batches import BatchLoader, DeviceBatch, FeatureLoader
from trainer.training.table_steps import EpochSteps, Row, TableSteps


@dataclass(frozen=True, kw_only=True)
class FeatureSteps:
    """Takes the steps of a training from tables of sample ids, on a GPU as CUDA graphs.

    Attributes:
        loader: Of the training; its method is not called.
        values: Features of the split, `(N, 1280) float32` on the device.
        labels: Labels of the split, on the device.
        steps: Takes the steps.
    """

    loader: FeatureLoader
    values: Tensor
    labels: Tensor
    steps: TableSteps

    @classmethod
    def of(cls, loader: BatchLoader, split: str, steps: TableSteps) -> "FeatureSteps | None":
        """Return the steps of a training; None where its inputs are not features that are on the device."""
        if not isinstance(loader, FeatureLoader):
            return None
        values, labels = loader.values[split], loader.labels[split]
        if not isinstance(values, Tensor) or values.device.type != steps.device.type:
            return None
        steps.use(values, labels)
        return cls(loader=loader, values=values, labels=labels, steps=steps)

    def take(
        self,
        plan: EpochPlan,
        first: int,
        lrs: Sequence[float],
        seed: Callable[[int], None],
        train_on: Callable[[DeviceBatch], Tensor],
    ) -> Iterator[tuple[int, float, Tensor]]:
        """Take the rest of the steps of an epoch; yield of each its images, learning rate and sum of losses.

        Args:
            plan: Of the epoch.
            first: Number of the first step to take, from 0.
            lrs: Learning rate of the head in each step of the epoch.
            seed: Called with the number of each step before it: seeds the random numbers.
            train_on: Computes a step but for the EMA, and returns the sum of its losses, () float64 on the device.
        """
        ids = [torch.from_numpy(plan.ids(number)) for number in range(plan.batches)]
        counts = [len(of_step) for of_step in ids]

        def prepare(number: int) -> None:
            self.loader.on_batch()
            seed(number)

        def train_on_rows(count: int, row: Row) -> Tensor:
            rows = row("ids")[:count]
            values, labels = self.values.index_select(0, rows), self.labels.index_select(0, rows)
            return train_on(DeviceBatch(values, labels, rows, count))

        columns = {"ids": nn.utils.rnn.pad_sequence(ids, batch_first=True)}
        epoch = EpochSteps(first=first, shapes=counts, lrs=lrs, columns=columns)
        taken = self.steps.take(epoch, prepare, train_on_rows)
        yield from zip(counts[first:], lrs[first:], taken, strict=True)
