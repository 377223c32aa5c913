"""The training loop: steps, validation, checkpoints, in the order in which they happen."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data_shards.index import ShardIndex
from data_shards.plan import EpochPlan
from trainer.data.batches import Source, Step, seed_draws, step_seed
from trainer.distributed.process_group import Ranks
from trainer.errors import Stopped, TrainingDiverged
from trainer.specs import TrainSpec
from trainer.training.micro_batching import backward
from trainer.training.optimizer import set_lr
from trainer.training.preemption import Preemption
from trainer.training.train_state import Position

MAX_NORM = 1.0  # of the gradient; keeps the first steps from random weights in bounds


@dataclass(frozen=True, kw_only=True)
class Course:
    """All that one training needs, on one rank.

    Attributes:
        module: What trains: a head on features, or the whole classifier on images.
        class_weights: `(classes,) float32`, their mean over the training samples is 1; None weighs all alike.
        validate: Scores the module on the validation split; called on every rank, the leader's figures count. None
            where the module learns from that split too.
        save: Writes a checkpoint; called on the leader.
        save_is_due: Whether an epoch takes so long that its middle is worth a checkpoint; asked on the leader.
        record: Tells people of an epoch that ended; called on the leader.
        count: Told of the images of each step, over all workers.
        begin_epoch: Told where an epoch begins.
        stop_reason: Why the run shall stop, or None; asked on the leader.
        autocast: Compute the module in bf16.
        after_step: Called after each step of the optimizer.
        epochs: Those (from 0) of this phase of the training, with a warm-up of their own; None takes all.
        parts: Forward and backward passes that make one step.
        preemption: Brings the notice that a machine goes, which is worth a checkpoint; the training goes on until then.
    """

    spec: TrainSpec
    index: ShardIndex
    ranks: Ranks
    module: nn.Module
    optimizer: torch.optim.Optimizer
    source: Source
    class_weights: Tensor | None
    validate: Callable[[], dict[str, Any]] | None
    save: Callable[[Position, bool], None]
    record: Callable[[dict[str, Any]], None]
    count: Callable[[int], None]
    begin_epoch: Callable[[Position], None]
    stop_reason: Callable[[], str | None]
    autocast: bool = False
    save_is_due: Callable[[], bool] = field(default=lambda: False)
    after_step: Callable[[], None] = field(default=lambda: None)
    epochs: range | None = None
    parts: int = 1
    preemption: Preemption = field(default_factory=Preemption)

    @property
    def span(self) -> range:
        """The epochs of this phase, from 0."""
        return range(self.spec.epochs) if self.epochs is None else self.epochs

    def is_over(self, position: Position) -> bool:
        """Return whether the phase is behind; only the last one ends for want of patience."""
        patience = self.spec.patience if self.span.stop == self.spec.epochs else None
        last = min(self.span.stop, self.spec.last_epoch)
        return position.epoch >= last or position.out_of_patience(patience, since=self.span.start)

    def plan(self, epoch: int) -> EpochPlan:
        """Return this rank's share of an epoch."""
        return EpochPlan(
            index=self.index,
            split=self.spec.split,
            batch_size=self.spec.batch_size,
            world_size=self.ranks.world_size,
            rank=self.ranks.rank,
            seed=self.spec.seed,
            epoch=epoch,
        )


def train_from(course: Course, position: Position) -> Position:
    """Train from `position` to the end of the phase, or until patience runs out, and return where that was.

    Raises:
        Stopped: The run was asked to stop; a checkpoint is saved.
        TrainingDiverged: The loss is no number any more; nothing of it is saved.
    """
    model = _parallel(course)
    while not course.is_over(position):
        position = train_epoch(course, model, position)
    return position


def train_epoch(course: Course, model: nn.Module, position: Position) -> Position:
    """Train the rest of an epoch, score it and return the position at the start of the next.

    `model` is the course's module, or what makes it train in step with the other ranks.
    """
    plan = course.plan(position.epoch)
    course.begin_epoch(position)
    began, done_before = time.monotonic(), position.images
    model.train()
    for step in course.source(plan, position.batch):
        loss = _train_step(course, model, step, position, plan.batches)
        position = _moved(course, position, loss, step)
    return _validated(course, position, plan, time.monotonic() - began, position.images - done_before)


def _parallel(course: Course) -> nn.Module:
    if course.ranks.world_size == 1:
        return course.module
    return DistributedDataParallel(course.module, gradient_as_bucket_view=True)


def _train_step(course: Course, model: nn.Module, step: Step, position: Position, batches: int) -> float:
    """Take one step; return this rank's part of the sum of the losses."""
    # Dropout's draws depend on the place alone: to resume, the position is all there is to know.
    seed_draws(step_seed(course.spec.seed, position.step, course.ranks.rank), course.ranks.device)
    step_of_phase = position.step - course.span.start * batches
    lr = set_lr(course.optimizer, course.spec.lr, step_of_phase, len(course.span) * batches)
    loss = backward(
        model,
        step,
        # DDP averages over ranks; batches of different sizes count by their images only after this weighting.
        weight=course.ranks.world_size / step.images,
        class_weights=course.class_weights,
        parts=course.parts,
        autocast=course.autocast,
    )
    nn.utils.clip_grad_norm_(course.module.parameters(), MAX_NORM)
    course.optimizer.step()
    course.optimizer.zero_grad(set_to_none=True)
    course.after_step()
    position.lr, position.parts = lr, course.parts
    return loss


def _moved(course: Course, position: Position, loss: float, step: Step) -> Position:
    """Return the position after a step that every rank has taken, unless it was the last."""
    reason = course.stop_reason() if course.ranks.leads else None
    due = course.ranks.leads and course.save_is_due()
    look = course.ranks.leads and course.preemption.is_due()
    total, stops, saves, looks = course.ranks.total(loss, float(reason is not None), float(due), float(look))
    if not math.isfinite(total):
        raise TrainingDiverged(
            f"the loss is no number at step {position.step + 1} of epoch {position.epoch + 1}; "
            "use a lower --lr and retry: the last good checkpoint is kept"
        )
    position = position.after_step(total, step.images)
    course.count(step.images)
    if stops or saves or (looks and course.preemption.is_new()):
        if course.ranks.leads:
            course.save(position, False)
        course.ranks.meet()
    if stops:
        raise Stopped(f"stopped ({course.ranks.from_leader(reason)}) after step {position.step}, checkpoint saved")
    return position


def _validated(course: Course, position: Position, plan: EpochPlan, seconds: float, images: int) -> Position:
    """Score, note and save the epoch that ended; return the position at the start of the next."""
    figures = course.ranks.from_leader(course.validate() if course.validate else {})
    if not math.isfinite(figures.get("loss", 0.0)):
        raise TrainingDiverged(f"the validation loss is no number after epoch {position.epoch + 1}; use a lower --lr")
    train_loss = position.loss_sum / plan.samples
    position, is_best = position.after_epoch(figures, course.spec.best_by)
    if course.ranks.leads:
        course.record(
            {
                "epoch": position.epoch,
                "epochs": course.spec.epochs,
                "train_loss": train_loss,
                **{f"valid_{name}": figures.get(name) for name in ("loss", "accuracy", "auroc", "balanced_accuracy")},
                "lr": position.lr,
                "micro_batches": position.parts,
                "best": is_best,
                "seconds": round(seconds, 3),
                "images_per_second": round(images / max(seconds, 1e-9), 1),
            }
        )
        course.save(position, is_best)
    course.ranks.meet()
    return position
