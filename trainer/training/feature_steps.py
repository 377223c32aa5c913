"""The steps of a training on features that are on the GPU: they need nothing from the CPU but their start."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards.plan import EpochPlan
from trainer.data.batches import BatchLoader, DeviceBatch, FeatureLoader
from trainer.training.batch_steps import BatchSource, BatchSteps
from trainer.training.table_steps import Row, TableSteps


@dataclass(frozen=True, kw_only=True)
class FeatureSteps(BatchSteps):
    """Takes the steps of a training from tables of sample ids, on a GPU as CUDA graphs.

    Attributes:
        loader: Of the training; its method is not called.
        values: Features of the split, `(N, 1280) float32` on the device.
        labels: Labels of the split, on the device.
    """

    loader: FeatureLoader
    values: Tensor
    labels: Tensor

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

    def _source(self, plan: EpochPlan, first: int) -> BatchSource:  # noqa: ARG002 -- the table has all steps
        """Return the batches by their sample ids, which are a column of the table."""
        ids = [torch.from_numpy(plan.ids(number)) for number in range(plan.batches)]

        def batch_of(count: int, row: Row) -> DeviceBatch:
            rows = row("ids")[:count]
            return DeviceBatch(self.values.index_select(0, rows), self.labels.index_select(0, rows), rows, count)

        columns = {"ids": nn.utils.rnn.pad_sequence(ids, batch_first=True)}
        return BatchSource(load=self.loader.on_batch, batch_of=batch_of, columns=columns)
