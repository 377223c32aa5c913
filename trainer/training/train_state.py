"""The state of a training between two steps: plain numbers, saved with each checkpoint."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any

from trainer.specs.metric import is_better


@dataclass(kw_only=True)
class TrainState:
    """How far a training is, and which epoch was the best so far.

    Attributes:
        step: Optimizer steps over all epochs.
        epoch: Completed epochs.
        batch: Steps in the current epoch.
        images: Images over all epochs and ranks.
        loss_sum: Sum of the losses in the current epoch, over all images and ranks.
        best_epoch: Number (from 1) of the epoch with the best model; 0 before the first.
        best_value: Metric of that epoch; None where it was undefined.
        lr: Learning rate of the head in the last step.
        micro_batches: Forward and backward passes in the last step.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    images: int = 0
    loss_sum: float = 0.0
    best_epoch: int = 0
    best_value: float | None = None
    lr: float = 0.0
    micro_batches: int = 1

    def after_step(self, images: int) -> "TrainState":
        """Return the state after one more step, whose loss is not known yet."""
        return replace(self, step=self.step + 1, batch=self.batch + 1, images=self.images + images)

    def with_losses(self, losses: Sequence[float]) -> "TrainState":
        """Return the state with the losses of the last steps, added one after another in the order of the steps."""
        return replace(self, loss_sum=reduce(operator.add, losses, self.loss_sum))

    def after_epoch(self, metrics: Mapping[str, Any], best_by: str) -> tuple["TrainState", bool]:
        """Return the state at the start of the next epoch, and whether the completed epoch is the best so far.

        On a tie the earlier epoch stays the best. An undefined metric is never better than a defined one. Without
        validation `metrics` is empty, and no epoch is the best.
        """
        ended = replace(self, epoch=self.epoch + 1, batch=0, loss_sum=0.0)
        if not metrics:
            return ended, False
        value = metrics[best_by]
        if self.best_epoch and not is_better(value, self.best_value, best_by):
            return ended, False
        return replace(ended, best_epoch=ended.epoch, best_value=value), True

    def should_stop_early(self, patience: int | None, since: int = 0) -> bool:
        """Return whether `patience` epochs, not counting the first `since`, have passed without a better one."""
        return patience is not None and self.epoch - max(self.best_epoch, since) >= patience

    def to_json(self) -> dict[str, Any]:
        """Return the content of the checkpoint's file, in which `micro_batches` is called `parts`."""
        content = asdict(self)
        content["parts"] = content.pop("micro_batches")
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TrainState":
        """Return the state that `to_json` wrote."""
        fields = dict(content)
        micro_batches = fields.pop("parts", 1)
        return cls(**fields, micro_batches=micro_batches)
