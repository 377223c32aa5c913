"""Trains one head on stored features, an epoch at a time; can pause between any two steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.lease import Lease
from cluster.stop_request import StopWatcher
from data_shards.index import ShardIndex
from data_shards.plan import EpochPlan
from trainer.attempt import Attempt
from trainer.data.batches import FeatureLoader
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.evaluation.objective import objective_of
from trainer.evaluation.scoring import ModelOutputs, epoch_metrics, model_outputs
from trainer.model.checkpoint_folder import latest_valid_checkpoint
from trainer.model.efficientnet import Backbone, Head, LinearHead, build_head
from trainer.model.head import HeadConfig
from trainer.progress import Progress
from trainer.specs import SearchSpec, TrainSpec
from trainer.training.checkpointer import TrainingCheckpoint
from trainer.training.ema import ModelEma
from trainer.training.loop import EpochMetrics, LoopHooks, TrainLoop
from trainer.training.model_setup import TrainingSetup, class_weights
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import TrainState

CHECKPOINT_SECONDS = 60.0  # between two checkpoints; an epoch of a head on a small data set is faster than an fsync


@dataclass(frozen=True)
class HeadTrainingData:
    """What all trials with one frozen backbone share.

    Attributes:
        config: The model's, with the width and dropout of the search's own options.
        loader: Features of the train and valid splits, on the device if that is a GPU with the memory.
        groups: Patient or case of each image of the valid split.
        weights: Class weights of the loss, or None.
        start: By seed, the state of the random number generator with which `train` builds the head.
    """

    context: WorkerContext[TrainSpec]
    index: ShardIndex
    config: HeadConfig
    loader: FeatureLoader
    groups: tuple[str, ...]
    weights: Tensor | None
    start: dict[int, Tensor]

    @classmethod
    def of(cls, task: WorkerTask[SearchSpec], device: torch.device) -> "HeadTrainingData":
        """Open the features, which the search computed before its first trial.

        Raises:
            ShardError, CheckpointError: Shards or stored features are damaged.
        """
        spec = task.spec.trial_spec({})
        context = standalone_context(task, spec, device)
        setup = TrainingSetup.fresh(context)
        index, loader = setup.index, FeatureLoader.of(setup.extractor, ("train", "valid"), device)
        groups = setup.extractor.features_of("valid").groups
        return cls(context, index, setup.config, loader, groups, class_weights(spec, index, device), {})

    @property
    def device(self) -> torch.device:
        """The device that heads train on."""
        return self.context.process_group.device

    @cached_property
    def valid_labels(self) -> NDArray[np.int64]:
        """Labels of the valid split, on the CPU."""
        found: NDArray[np.int64] = self.loader.labels["valid"].cpu().numpy()
        return found

    def config_of(self, spec: TrainSpec) -> HeadConfig:
        """Return the config of a trial's model."""
        return self.config.model_copy(update={"width": spec.head_width, "dropout": spec.dropout})

    def fresh_head(self, spec: TrainSpec) -> Head | LinearHead:
        """Return the head that `train` with this spec starts from, bit for bit."""
        if spec.seed not in self.start:
            torch.manual_seed(spec.seed)
            Backbone(self.config.image_size, self.config.layout)  # draws the random numbers that `train` draws first
            self.start[spec.seed] = torch.get_rng_state()
        torch.set_rng_state(self.start[spec.seed])
        return build_head(self.config_of(spec)).to(self.device)


def standalone_context(
    task: WorkerTask[SearchSpec], spec: TrainSpec, device: torch.device, *, writes_progress: bool = False
) -> WorkerContext[TrainSpec]:
    """Return the context of a worker that trains or scores one trial alone; stop requests are the search's.

    So is its progress, unless it `writes_progress` itself.
    """
    attempt = task.attempt
    return WorkerContext(
        task=WorkerTask(attempt=attempt, spec=spec, source=task.source),
        process_group=ProcessGroup(0, 1, device),
        progress=Progress(attempt.paths, attempt.lease, writes=writes_progress),
        stop=no_stop(attempt),
    )


def no_stop(attempt: Attempt) -> StopWatcher:
    """Return a watcher that finds no request: a stopped search still publishes its best model."""
    return StopWatcher(attempt.paths.scratch / "nowhere" / "stop.json", attempt.number)


class HeadTraining(LoopHooks):
    """A head with its optimizer and train state; resumes from its newest checkpoint.

    Args:
        data: What it trains on.
        spec: The training.
        folder: For its checkpoints.
        stop_reason: Returns why it should pause, or None; called at each step.
        lease: Of the attempt that writes the checkpoints.

    Attributes:
        fetch: Called before its tensors are read: copies them from where they were trained with those of other heads.
    """

    def __init__(
        self, data: HeadTrainingData, spec: TrainSpec, folder: Path, stop_reason: Callable[[], str | None], lease: Lease
    ) -> None:
        self.data, self.spec, self.folder, self.lease = data, spec, folder, lease
        self.module = data.fresh_head(spec)
        self.optimizer = build_optimizer(
            self.module, None, backbone_factor=1.0, weight_decay=spec.weight_decay, device=data.device
        )
        self.ema = ModelEma(self.module, spec.ema)
        self.checkpoint = TrainingCheckpoint(self.module, self.optimizer, self.ema)
        self.saved_at, self.saved_step = time.monotonic(), 0
        self.validated: dict[str, Any] = {}
        self.outputs: ModelOutputs | None = None
        self.line: dict[str, Any] = {}
        self._stop_reason = stop_reason
        self._logits: NDArray[np.float64] | None = None
        self.fetch: Callable[[], None] = lambda: None
        self.loop = self._loop()
        self.state = self._resumed()

    def epoch(self) -> dict[str, Any]:
        """Train one epoch and return its metrics, as a line of `metrics.jsonl` has them.

        Raises:
            Stopped: It was asked to pause; a checkpoint is saved.
            TrainingDiverged: The loss is not finite (NaN or inf).
        """
        self.state = self.loop.train_epoch(self.state)
        return self.line

    def take_steps(self, images: Sequence[int], losses: Sequence[float], lr: float) -> None:
        """Count steps that it was trained for elsewhere.

        Args:
            images: Of each step.
            losses: Sum of the losses of each step.
            lr: Learning rate of the last one.

        Raises:
            TrainingDiverged: A loss is not finite.
        """
        for count in images:
            self.state = self.state.after_step(count)
        self.state = replace(self.loop.with_losses(self.state, losses), lr=lr)

    def finish_epoch(self, logits: NDArray[np.float64], plan: EpochPlan, seconds: float) -> None:
        """Finish an epoch whose steps it was trained for elsewhere, all of them.

        Args:
            logits: `(N, C)`, its outputs for the valid split.
            plan: Of the epoch.
            seconds: Time of the steps.

        Raises:
            TrainingDiverged: The validation loss is not finite.
        """
        self._logits = logits
        self.state = self.loop.finish_epoch(self.state, plan, seconds, plan.samples)

    @property
    def value(self) -> float | None:
        """The metric that ranks, after the last epoch; None where it is undefined on the valid split."""
        found = self.validated.get(self.spec.best_by)
        return None if found is None else float(found)

    @property
    def is_over(self) -> bool:
        """Whether it has trained all epochs, or early stopping ended it."""
        return self.state.epoch >= self.spec.epochs or self.state.should_stop_early(self.spec.patience)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights that the last validation used."""
        self.fetch()
        return dict(self.ema.module.state_dict())

    def save(self, state: TrainState) -> None:
        """Write a checkpoint to resume from."""
        self.fetch()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint.save(self.folder, state, lease=self.lease)
        self.saved_at, self.saved_step = time.monotonic(), state.step

    def end(self) -> None:
        """Free its tensors now: a GPU does not wait for the garbage collector, which alone finds reference cycles."""
        self.fetch = lambda: None
        del self.loop, self.module, self.optimizer, self.ema, self.checkpoint

    def save_last_epoch(self) -> None:
        """Save a checkpoint of the last epoch unless a newer one exists."""
        if self.state.step > self.saved_step:
            self.save(self.state)

    def _loop(self) -> TrainLoop:
        data = self.data
        return TrainLoop(
            spec=self.spec,
            index=data.index,
            process_group=data.context.process_group,
            module=self.module,
            optimizer=self.optimizer,
            loader=data.loader,
            class_weights=data.weights,
            hooks=self,
            ema=self.ema,
        )

    def stop_reason(self) -> str | None:
        """Return why it should pause, or None."""
        return self._stop_reason()

    def validate(self) -> dict[str, Any]:
        """Score the valid split."""
        found = replace(self._valid_outputs(), groups=self.data.groups)
        self.outputs, self.validated = found, epoch_metrics(found)
        return self.validated

    def _valid_outputs(self) -> ModelOutputs:
        data, logits, self._logits = self.data, self._logits, None
        if logits is None:
            return model_outputs(self.ema.module, data.loader, data.index, "valid", data.context.process_group)
        objective = objective_of(data.index.multi_label)
        return ModelOutputs(logits=logits, labels=data.valid_labels, objective=objective)

    def save_checkpoint(self, state: TrainState, is_best: bool) -> None:  # noqa: ARG002 -- the search keeps the best
        """Save a checkpoint when due; within an epoch always, because there the loop saves only when it stops."""
        if state.batch or time.monotonic() - self.saved_at >= CHECKPOINT_SECONDS:
            self.save(state)

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Keep the line of the epoch."""
        self.line = metrics.to_json()

    def _resumed(self) -> TrainState:
        found = latest_valid_checkpoint(self.folder)
        if found is None:
            return TrainState()
        state = self.checkpoint.load(found)
        self.saved_step = state.step
        if state.epoch and not state.batch:
            self.validate()
        return state
