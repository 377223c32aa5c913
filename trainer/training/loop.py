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
from trainer.data.batches import BatchLoader, DeviceBatch, seed_draws, step_seed
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import Stopped, TrainingDiverged
from trainer.specs import TrainSpec
from trainer.training.micro_batching import accumulate_gradients
from trainer.training.optimizer import set_lr
from trainer.training.preemption import PreemptionWatcher
from trainer.training.train_state import TrainState

MAX_NORM = 1.0  # of the gradient; keeps the first steps from random weights in bounds


@dataclass(frozen=True, kw_only=True)
class TrainLoop:
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
    process_group: ProcessGroup
    module: nn.Module
    optimizer: torch.optim.Optimizer
    source: BatchLoader
    class_weights: Tensor | None
    validate: Callable[[], dict[str, Any]] | None
    save: Callable[[TrainState, bool], None]
    record: Callable[[dict[str, Any]], None]
    count: Callable[[int], None]
    begin_epoch: Callable[[TrainState], None]
    stop_reason: Callable[[], str | None]
    autocast: bool = False
    save_is_due: Callable[[], bool] = field(default=lambda: False)
    after_step: Callable[[], None] = field(default=lambda: None)
    epochs: range | None = None
    micro_batches: int = 1
    preemption: PreemptionWatcher = field(default_factory=PreemptionWatcher)

    @property
    def span(self) -> range:
        """The epochs of this phase, from 0."""
        return range(self.spec.epochs) if self.epochs is None else self.epochs

    def is_over(self, state: TrainState) -> bool:
        """Return whether the phase is behind; only the last one ends for want of patience."""
        patience = self.spec.patience if self.span.stop == self.spec.epochs else None
        last = min(self.span.stop, self.spec.last_epoch)
        return state.epoch >= last or state.should_stop_early(patience, since=self.span.start)

    def plan(self, epoch: int) -> EpochPlan:
        """Return this rank's share of an epoch."""
        return EpochPlan(
            index=self.index,
            split=self.spec.split,
            batch_size=self.spec.batch_size,
            world_size=self.process_group.world_size,
            rank=self.process_group.rank,
            seed=self.spec.seed,
            epoch=epoch,
        )


def train_from(loop: TrainLoop, state: TrainState) -> TrainState:
    """Train from `state` to the end of the phase, or until patience runs out, and return where that was.

    Raises:
        Stopped: The run was asked to stop; a checkpoint is saved.
        TrainingDiverged: The loss is no number any more; nothing of it is saved.
    """
    model = _parallel(loop)
    while not loop.is_over(state):
        state = train_epoch(loop, model, state)
    return state


def train_epoch(loop: TrainLoop, model: nn.Module, state: TrainState) -> TrainState:
    """Train the rest of an epoch, score it and return the position at the start of the next.

    `model` is the course's module, or what makes it train in step with the other ranks.
    """
    plan = loop.plan(state.epoch)
    loop.begin_epoch(state)
    began, done_before = time.monotonic(), state.images
    model.train()
    for step in loop.source(plan, state.batch):
        loss = _train_step(loop, model, step, state, plan.batches)
        state = _moved(loop, state, loss, step)
    return _validated(loop, state, plan, time.monotonic() - began, state.images - done_before)


def _parallel(loop: TrainLoop) -> nn.Module:
    if loop.process_group.world_size == 1:
        return loop.module
    return DistributedDataParallel(loop.module, gradient_as_bucket_view=True)


def _train_step(loop: TrainLoop, model: nn.Module, step: DeviceBatch, state: TrainState, batches: int) -> float:
    """Take one step; return this rank's part of the sum of the losses."""
    # Dropout's draws depend on the place alone: to resume, the position is all there is to know.
    seed_draws(step_seed(loop.spec.seed, state.step, loop.process_group.rank), loop.process_group.device)
    step_of_phase = state.step - loop.span.start * batches
    lr = set_lr(loop.optimizer, loop.spec.lr, step_of_phase, len(loop.span) * batches)
    loss = accumulate_gradients(
        model,
        step,
        # DDP averages over ranks; batches of different sizes count by their images only after this weighting.
        loss_weight=loop.process_group.world_size / step.images,
        class_weights=loop.class_weights,
        micro_batches=loop.micro_batches,
        autocast=loop.autocast,
    )
    nn.utils.clip_grad_norm_(loop.module.parameters(), MAX_NORM)
    loop.optimizer.step()
    loop.optimizer.zero_grad(set_to_none=True)
    loop.after_step()
    state.lr, state.micro_batches = lr, loop.micro_batches
    return loss


def _moved(loop: TrainLoop, state: TrainState, loss: float, step: DeviceBatch) -> TrainState:
    """Return the position after a step that every rank has taken, unless it was the last."""
    reason = loop.stop_reason() if loop.process_group.is_rank_zero else None
    due = loop.process_group.is_rank_zero and loop.save_is_due()
    look = loop.process_group.is_rank_zero and loop.preemption.should_poll()
    total, stops, saves, looks = loop.process_group.all_reduce_sum(
        loss, float(reason is not None), float(due), float(look)
    )
    if not math.isfinite(total):
        raise TrainingDiverged(
            f"the loss is no number at step {state.step + 1} of epoch {state.epoch + 1}; "
            "use a lower --lr and retry: the last good checkpoint is kept"
        )
    state = state.after_step(total, step.images)
    loop.count(step.images)
    if stops or saves or (looks and loop.preemption.poll()):
        if loop.process_group.is_rank_zero:
            loop.save(state, False)
        loop.process_group.barrier()
    if stops:
        raise Stopped(f"stopped ({loop.process_group.broadcast(reason)}) after step {state.step}, checkpoint saved")
    return state


def _validated(loop: TrainLoop, state: TrainState, plan: EpochPlan, seconds: float, images: int) -> TrainState:
    """Score, note and save the epoch that ended; return the position at the start of the next."""
    figures = loop.process_group.broadcast(loop.validate() if loop.validate else {})
    if not math.isfinite(figures.get("loss", 0.0)):
        raise TrainingDiverged(f"the validation loss is no number after epoch {state.epoch + 1}; use a lower --lr")
    train_loss = state.loss_sum / plan.samples
    state, is_best = state.after_epoch(figures, loop.spec.best_by)
    if loop.process_group.is_rank_zero:
        loop.record(
            {
                "epoch": state.epoch,
                "epochs": loop.spec.epochs,
                "train_loss": train_loss,
                **{f"valid_{name}": figures.get(name) for name in ("loss", "accuracy", "auroc", "balanced_accuracy")},
                "lr": state.lr,
                "micro_batches": state.micro_batches,
                "best": is_best,
                "seconds": round(seconds, 3),
                "images_per_second": round(images / max(seconds, 1e-9), 1),
            }
        )
        loop.save(state, is_best)
    loop.process_group.barrier()
    return state
