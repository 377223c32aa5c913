"""Steps on one GPU whose batches a loader brings: each is copied to where the CUDA graph of its size reads it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from data_shards.plan import EpochPlan
from trainer.data.batches import BatchLoader, DeviceBatch
from trainer.training.table_steps import EpochSteps, Row, TableSteps


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """Where the steps of an epoch find their batches.

    Attributes:
        load: Called on the CPU before each step.
        batch_of: Part of the step: returns its batch from its number of images and its row of the table.
        columns: Of the table, `(T, ...)` each for T steps.
    """

    load: Callable[[], None]
    batch_of: Callable[[int, Row], DeviceBatch]
    columns: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BatchSteps:
    """Takes the steps of a training on images, or on features that the GPU has no memory for.

    Attributes:
        loader: Of the training.
        steps: Takes the steps.
    """

    loader: BatchLoader
    steps: TableSteps
    _batches: dict[int, DeviceBatch] = field(default_factory=dict)  # by size: where its steps read their batch

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
        counts = [plan.images_in_step(number) for number in range(plan.batches)]
        source = self._source(plan, first)

        def prepare(number: int) -> None:
            source.load()
            seed(number)

        epoch = EpochSteps(first=first, shapes=counts, lrs=lrs, columns=source.columns)
        taken = self.steps.take(epoch, prepare, lambda count, row: train_on(source.batch_of(count, row)))
        yield from zip(counts[first:], lrs[first:], taken, strict=True)

    def _source(self, plan: EpochPlan, first: int) -> "BatchSource":
        """Return where the steps of an epoch from `first` on find their batches."""
        batches = self.loader(plan, first)
        return BatchSource(load=lambda: self._keep(next(batches)), batch_of=lambda count, _: self._batches[count])

    def _keep(self, batch: DeviceBatch) -> None:
        """Copy a batch to where the steps of its size read it."""
        kept = self._batches.get(batch.images)
        if kept is None:
            kept = DeviceBatch(batch.inputs.clone(), batch.labels.clone(), batch.ids.clone(), batch.images)
            self._batches[batch.images] = kept
            return
        kept.inputs.copy_(batch.inputs, non_blocking=True)
        kept.labels.copy_(batch.labels, non_blocking=True)
        kept.ids.copy_(batch.ids)
