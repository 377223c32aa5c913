"""The training loop: steps, gradient accumulation, validation and checkpoints."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from data_shards.index import ShardIndex
from data_shards.plan import EpochPlan
from trainer.data.batches import BatchLoader, DeviceBatch, seed_draws, step_seed
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import Stopped, TrainingDiverged
from trainer.evaluation.metric_text import figure_text
from trainer.evaluation.objective import objective_of
from trainer.model.sync_batch_norm import SyncBatchNorm1d
from trainer.specs import TrainSpec
from trainer.training.batch_steps import BatchSteps
from trainer.training.ema import ModelEma
from trainer.training.feature_steps import FeatureSteps
from trainer.training.micro_batching import accumulate_gradients
from trainer.training.optimizer import lr_factor, set_lr
from trainer.training.preemption import PreemptionWatcher
from trainer.training.step_gatherer import Requests, StepGatherer
from trainer.training.step_graphs import DEVICES
from trainer.training.table_steps import TableSteps
from trainer.training.train_state import TrainState

MAX_GRADIENT_NORM = 1.0  # for clipping; bounds the first steps from random weights
LOGGED = ("loss", "accuracy", "auroc", "balanced_accuracy")  # validation metrics in a line of metrics.jsonl


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Metrics of one epoch.

    Attributes:
        epoch: Number of the epoch, from 1.
        epochs: Planned epochs of the training.
        train_loss: Mean over the training samples.
        valid: Validation metrics by name; empty when nothing was validated.
        lr: Learning rate of the head in the last step.
        micro_batches: Forward and backward passes per step.
        best: Whether this is the best epoch so far.
        seconds: Time of the training steps, without validation.
        images_per_second: Training speed over all ranks.
    """

    epoch: int
    epochs: int
    train_loss: float
    valid: Mapping[str, Any]
    lr: float
    micro_batches: int
    best: bool
    seconds: float
    images_per_second: float

    def to_json(self) -> dict[str, Any]:
        """Return the epoch's line of `metrics.jsonl`."""
        return {
            "epoch": self.epoch,
            "epochs": self.epochs,
            "train_loss": self.train_loss,
            **{f"valid_{name}": self.valid.get(name) for name in LOGGED},
            "lr": self.lr,
            "micro_batches": self.micro_batches,
            "best": self.best,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 1),
        }

    def __str__(self) -> str:
        """Return the epoch's line of the log."""
        found = {name: self.valid.get(name) for name in LOGGED}
        valid = "".join(f", {name} {figure_text(value, of=name)}" for name, value in found.items() if value is not None)
        return (
            f"epoch {self.epoch} of {self.epochs}: training loss {figure_text(self.train_loss, of='loss')}"
            f"{f'; valid{valid[1:]}' if valid else ''}{'; the best so far' if self.best else ''}"
        )


class LoopHooks:
    """What a `TrainLoop` calls; subclasses override what they need. Each method says on which ranks it runs."""

    def on_epoch_start(self, state: TrainState) -> None:
        """Called on every rank before the first step of an epoch, or before the first after a resume."""

    def on_step_end(self, images: int) -> None:
        """Called on every rank after each step, which has `images` images over all ranks."""

    def stop_reason(self) -> str | None:
        """Called on rank 0 after one or more steps: return why the training should stop, or None."""
        return None

    def checkpoint_is_due(self) -> bool:
        """Called on rank 0 after one or more steps: return whether to save a checkpoint in the middle of the epoch."""
        return False

    def validate(self) -> dict[str, Any]:
        """Called on every rank after each epoch: return the validation metrics; those of rank 0 count.

        An empty result means that there is no validation split.
        """
        return {}

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Called on rank 0 after each epoch."""

    def save_checkpoint(self, state: TrainState, is_best: bool) -> None:
        """Called on rank 0 after each epoch, when a checkpoint is due, and before the training stops.

        It may return before the checkpoint is written, but not before it has a copy of the tensors.
        """

    def wait_for_checkpoint(self) -> None:
        """Called on rank 0 before a stop or a preemption: return when the last checkpoint is written."""


@dataclass(frozen=True, kw_only=True)
class TrainLoop:
    """The training of one module over a range of epochs, on one rank.

    Attributes:
        module: What trains: a head on features, or the whole classifier on images.
        loader: Yields this rank's batches.
        class_weights: Weights of the loss, float32, as the objective of the data set takes them; None for equal ones.
        hooks: Called as the training proceeds.
        ema: Average of the module, or of a module of which it is a part; None: there is none.
        precision: That the module is computed in.
        scaler: Scales the loss in float16; None: not scaled.
        epochs: The epochs (from 0) of this phase, which has its own learning rate schedule; None means all.
        micro_batches: Forward and backward passes per step.
        preemption: Reports that a node is about to be preempted: a checkpoint is saved and the training continues.
    """

    spec: TrainSpec
    index: ShardIndex
    process_group: ProcessGroup
    module: nn.Module
    optimizer: torch.optim.Optimizer
    loader: BatchLoader
    class_weights: Tensor | None
    hooks: LoopHooks
    ema: ModelEma | None = None
    precision: str = "fp32"
    scaler: torch.amp.GradScaler | None = None
    epochs: range | None = None
    micro_batches: int = 1
    preemption: PreemptionWatcher = field(default_factory=PreemptionWatcher)

    @cached_property
    def model(self) -> nn.Module:
        """The module, in DDP where there are several ranks."""
        return self.process_group.distributed(
            self.module,
            broadcasts_buffers=ranks_differ_in_buffers(self.module),
            in_bf16=self.precision == "bf16",
        )

    @cached_property
    def _gatherer(self) -> StepGatherer:
        return StepGatherer(self.process_group)

    @cached_property
    def _steps_on_gpu(self) -> BatchSteps | None:
        """Takes the steps on a single GPU; None elsewhere, and where a scaler leaves steps out."""
        if (
            self.scaler is not None
            or self.process_group.world_size > 1
            or self.process_group.device.type not in DEVICES
        ):
            return None
        weights = [] if self.class_weights is None else [self.class_weights]
        steps = TableSteps(module=self.module, optimizer=self.optimizer, ema=self.ema, data=weights)
        return FeatureSteps.of(self.loader, self.spec.split, steps) or BatchSteps(loader=self.loader, steps=steps)

    @property
    def phase(self) -> range:
        """The epochs of this phase, from 0."""
        return range(self.spec.epochs) if self.epochs is None else self.epochs

    @property
    def _or_fp32(self) -> str:
        return " or --precision fp32" if self.precision == "fp16" else ""

    def is_over(self, state: TrainState) -> bool:
        """Return whether the phase is complete; early stopping only ends the last phase."""
        patience = self.spec.patience if self.phase.stop == self.spec.epochs else None
        last = min(self.phase.stop, self.spec.last_epoch)
        return state.epoch >= last or state.should_stop_early(patience, since=self.phase.start)

    def train_epoch(self, state: TrainState) -> TrainState:
        """Train the rest of the epoch, validate, save a checkpoint, and return the state at the start of the next.

        Raises:
            Stopped: The run was asked to stop; a checkpoint is saved.
            TrainingDiverged: The loss is not finite; no checkpoint of it is saved.
        """
        plan = epoch_plan(self.spec, self.index, self.process_group, state.epoch)
        self.hooks.on_epoch_start(state)
        started, images_before = time.monotonic(), state.images
        self.model.train()
        self._gatherer.start()
        for images, lr, loss_sum in self._steps(plan, state):
            self._gatherer.add(loss_sum)
            state.lr, state.micro_batches = lr, self.micro_batches
            self.hooks.on_step_end(images)
            state = self._gather_if_due(state.after_step(images))
        if not self._gatherer.is_empty:
            state = self._gather(state, self._requests())
        return self.finish_epoch(state, plan, time.monotonic() - started, state.images - images_before)

    def _optimizer_step(self) -> None:
        """Clip the gradients and take a step; a step with gradients beyond float16 is left out and the scale reduced.

        Ranks have the same gradients, so they leave out the same steps.
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.module.parameters(), MAX_GRADIENT_NORM)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _steps(self, plan: EpochPlan, state: TrainState) -> Iterator[tuple[int, float, Tensor]]:
        """Take the rest of the steps of an epoch; yield of each the images, the head's lr and the sum of losses.

        The images are of all ranks, the losses, () float64 on the device, of this one.
        """
        first, steps = self.phase.start * plan.batches, len(self.phase) * plan.batches
        if self._steps_on_gpu is not None:
            start = state.step - state.batch
            lrs = [self.spec.lr * lr_factor(start - first + number, steps) for number in range(plan.batches)]
            yield from self._steps_on_gpu.take(
                plan, state.batch, lrs, lambda number: self._seed(start + number), self._train_on
            )
            return
        for step, batch in enumerate(self.loader(plan, state.batch), state.step):
            lr = set_lr(self.optimizer, self.spec.lr, step - first, steps)
            self._seed(step)
            loss_sum = self._train_on(batch)
            if self.ema is not None:
                self.ema.update()
            yield batch.images, lr, loss_sum

    def _seed(self, step: int) -> None:
        """Seed dropout by seed, step and rank alone, so that a checkpoint needs no state of a generator."""
        seed_draws(step_seed(self.spec.seed, step, self.process_group.rank), self.process_group.device)

    def _train_on(self, batch: DeviceBatch) -> Tensor:
        """Compute the gradients, take the optimizer's step, and return the sum of this rank's losses, () float64."""
        loss_sum = accumulate_gradients(
            self.model,
            batch,
            # DDP takes the mean over ranks; this weight makes every image count equally when batch sizes differ.
            loss_weight=self.process_group.world_size / batch.images,
            class_weights=self.class_weights,
            objective=objective_of(self.index.multi_label),
            micro_batches=self.micro_batches,
            precision=self.precision,
            scaler=self.scaler,
        )
        self._optimizer_step()
        return loss_sum

    def _requests(self) -> Requests:
        """Return what this rank asks for: nothing, unless it is rank 0."""
        if not self.process_group.is_rank_zero:
            return Requests()
        return Requests(self.hooks.stop_reason(), self.hooks.checkpoint_is_due(), self.preemption.should_poll())

    def _gather_if_due(self, state: TrainState) -> TrainState:
        """Gather if it is time to, or at once if the only rank asks for something."""
        if not self._gatherer.is_due and self.process_group.world_size > 1:
            return state
        requests = self._requests()
        return self._gather(state, requests) if self._gatherer.is_due or requests else state

    def _gather(self, state: TrainState, requests: Requests) -> TrainState:
        """Return the state with the losses of all ranks; save a checkpoint or stop if any of them asks for it.

        Raises:
            Stopped: The run was asked to stop; a checkpoint is saved.
            TrainingDiverged: A loss is not finite.
        """
        losses, gathered = self._gatherer.gather(requests)
        state = self.with_losses(state, losses)
        is_preempted = gathered.polls and self.preemption.poll()
        if gathered.stops or gathered.saves or is_preempted:
            if self.process_group.is_rank_zero:
                self.hooks.save_checkpoint(state, False)
                if gathered.stops or is_preempted:
                    self.hooks.wait_for_checkpoint()
            self.process_group.barrier()
        if gathered.stops:
            reason = self.process_group.broadcast(requests.stop_reason)
            raise Stopped(f"stopped ({reason}) after step {state.step}, checkpoint saved")
        return state

    def with_losses(self, state: TrainState, losses: Sequence[float]) -> TrainState:
        """Return the state with the losses of its last steps.

        Raises:
            TrainingDiverged: A loss is not finite.
        """
        for step, loss in enumerate(losses, state.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"loss is not finite (NaN or inf) at step {step} of epoch {state.epoch + 1}; "
                    f"use a lower --lr{self._or_fp32} and retry: the last good checkpoint is kept"
                )
        return state.with_losses(losses)

    def finish_epoch(self, state: TrainState, plan: EpochPlan, seconds: float, images: int) -> TrainState:
        """Validate, log and save; return the state at the start of the next epoch.

        Args:
            state: After the last step.
            plan: Of the epoch.
            seconds: Time of its steps.
            images: Images of its steps, since the last resume.

        Raises:
            TrainingDiverged: The validation loss is not finite.
        """
        valid = self.process_group.broadcast(self.hooks.validate())
        if not math.isfinite(valid.get("loss", 0.0)):
            raise TrainingDiverged(
                f"validation loss is not finite (NaN or inf) after epoch {state.epoch + 1}; "
                f"use a lower --lr{self._or_fp32}"
            )
        train_loss = state.loss_sum / plan.samples
        state, is_best = state.after_epoch(valid, self.spec.best_by)
        if self.process_group.is_rank_zero:
            self.hooks.log_epoch(
                EpochMetrics(
                    epoch=state.epoch,
                    epochs=self.spec.epochs,
                    train_loss=train_loss,
                    valid=valid,
                    lr=state.lr,
                    micro_batches=state.micro_batches,
                    best=is_best,
                    seconds=seconds,
                    images_per_second=images / max(seconds, 1e-9),
                )
            )
            self.hooks.save_checkpoint(state, is_best)
        self.process_group.barrier()
        return state


def epoch_plan(spec: TrainSpec, index: ShardIndex, process_group: ProcessGroup, epoch: int) -> EpochPlan:
    """Return this rank's share of a training epoch."""
    return EpochPlan(
        index=index,
        split=spec.split,
        batch_size=spec.batch_size,
        world_size=process_group.world_size,
        rank=process_group.rank,
        seed=spec.seed,
        epoch=epoch,
    )


def ranks_differ_in_buffers(module: nn.Module) -> bool:
    """Return whether the ranks of a training compute buffers of their own, so that they have to take those of rank 0.

    They do in batch norms that train on the images of one rank. All others are equal on all ranks: those that keep
    their running statistics, and those whose statistics are over all ranks.
    """
    was_training = module.training
    module.train()
    differ = any(
        isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)  # nn.SyncBatchNorm is neither
        and norm.training
        and norm.track_running_stats
        and not isinstance(norm, SyncBatchNorm1d)
        for norm in module.modules()
    )
    module.train(was_training)
    return differ
