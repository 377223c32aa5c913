"""Where a training stands, and which epoch was the best so far. Plain numbers, saved with each checkpoint."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.specs.metric import is_better


@dataclass(kw_only=True)
class TrainState:
    """A place between two steps.

    Attributes:
        step: Steps taken over all epochs.
        epoch: Whole epochs behind.
        batch: Steps taken in the epoch that has begun.
        images: Images seen over all epochs and workers.
        loss_sum: Of the epoch that has begun, over its images and workers.
        best_epoch: The epoch (from 1) whose model is the best; 0 before the first.
        best_value: Its metric; None where the metric was undefined.
        lr: Learning rate of the last step.
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

    def after_step(self, loss_sum: float, images: int) -> "TrainState":
        """Return the position one step on."""
        return replace(
            self,
            step=self.step + 1,
            batch=self.batch + 1,
            images=self.images + images,
            loss_sum=self.loss_sum + loss_sum,
        )

    def after_epoch(self, figures: dict[str, Any], best_by: str) -> tuple["TrainState", bool]:
        """Return the position at the start of the next epoch, and whether the one that ended is the best.

        Of equals the earlier stays the best. A metric that the split leaves undefined is never better than one that is.
        Where nothing is validated there are no figures, and no epoch is the best.
        """
        ended = replace(self, epoch=self.epoch + 1, batch=0, loss_sum=0.0)
        if not figures:
            return ended, False
        value = figures[best_by]
        if self.best_epoch and not is_better(value, self.best_value, best_by):
            return ended, False
        return replace(ended, best_epoch=ended.epoch, best_value=value), True

    def should_stop_early(self, patience: int | None, since: int = 0) -> bool:
        """Return whether so many epochs after the first `since` have ended without a better one."""
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
