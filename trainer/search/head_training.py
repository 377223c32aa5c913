"""One head in training on stored features, an epoch at a time, able to pause between any two steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.stop_request import StopWatcher
from data_shards.index import ShardIndex
from trainer.data.batches import FeatureLoader
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.evaluation.scoring import epoch_metrics, model_outputs
from trainer.model.checkpoint_folder import latest_valid_checkpoint, write_checkpoint_folder
from trainer.model.efficientnet import Backbone, Head, build_head
from trainer.model.head import HeadConfig
from trainer.progress import Progress
from trainer.specs import SearchSpec, TrainSpec
from trainer.training.checkpointer import MODULE, TrainingCheckpoint
from trainer.training.ema import ModelEma
from trainer.training.loop import EpochMetrics, LoopHooks, TrainLoop
from trainer.training.model_setup import TrainingSetup, class_weights
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import TrainState

CHECKPOINT_SECONDS = 60.0  # between two epochs; a head of a small data set trains faster than a disk syncs


@dataclass(frozen=True)
class HeadTrainingData:
    """Everything that trials over one frozen backbone share.

    Attributes:
        config: Of the model, with the width and dropout of the search's own options.
        loader: Features of the train and valid splits, on the device.
        start: State of the random numbers, by seed, as `train` has it when it builds the head.
    """

    context: WorkerContext[TrainSpec]
    index: ShardIndex
    config: HeadConfig
    loader: FeatureLoader
    weights: Tensor | None
    start: dict[int, Tensor]

    @classmethod
    def of(cls, task: WorkerTask[SearchSpec], device: torch.device) -> "HeadTrainingData":
        """Read the features, which the search has computed before its first trial, into memory.

        Raises:
            ShardError, CheckpointError: Shards or stored features are damaged.
        """
        spec = task.spec.trial_spec({})
        context = standalone_context(task, spec, device)
        setup = TrainingSetup.fresh(context)
        index, loader = setup.index, FeatureLoader.of(setup.extractor(cached=True), ("train", "valid"), device)
        return cls(context, index, setup.config, loader, class_weights(spec, index, device), {})

    @property
    def device(self) -> torch.device:
        """Where heads train."""
        return self.context.process_group.device

    def config_of(self, spec: TrainSpec) -> HeadConfig:
        """Return the description of a trial's model."""
        return self.config.model_copy(update={"width": spec.head_width, "dropout": spec.dropout})

    def fresh_head(self, spec: TrainSpec) -> Head:
        """Return the head that `train` with this spec would start from, to the last bit."""
        if spec.seed not in self.start:
            torch.manual_seed(spec.seed)
            Backbone(self.config.image_size, self.config.layout)  # draws what `train` has drawn before its head
            self.start[spec.seed] = torch.get_rng_state()
        torch.set_rng_state(self.start[spec.seed])
        return build_head(self.config_of(spec)).to(self.device)


def standalone_context(task: WorkerTask[SearchSpec], spec: TrainSpec, device: torch.device) -> WorkerContext[TrainSpec]:
    """Return the post of a worker that works alone on one trial and leaves telling and stopping to the search."""
    attempt = task.attempt
    nowhere = attempt.paths.scratch / "nowhere" / "stop.json"  # a search that is stopped still publishes its best
    return WorkerContext(
        task=WorkerTask(attempt=attempt, spec=spec, source=task.source),
        process_group=ProcessGroup(0, 1, device),
        progress=Progress(attempt.paths, attempt.number, writes=False),
        stop=StopWatcher(nowhere, attempt.number),
    )


class HeadTraining(LoopHooks):
    """A head, its optimizer and where it stands; begins where its newest checkpoint is.

    Args:
        bench: What it trains on.
        spec: The training.
        folder: For its checkpoints.
        stop_reason: Why it shall pause, or None; asked at each step.
        attempt: Number of the attempt, written into checkpoints.
    """

    def __init__(
        self, data: HeadTrainingData, spec: TrainSpec, folder: Path, stop_reason: Callable[[], str | None], attempt: int
    ) -> None:
        self.data, self.spec, self.folder, self.attempt = data, spec, folder, attempt
        self.module = data.fresh_head(spec)
        self.optimizer = build_optimizer(
            self.module, None, backbone_factor=1.0, weight_decay=spec.weight_decay, device=data.device
        )
        self.ema = ModelEma(self.module, spec.ema)
        self.checkpoint = TrainingCheckpoint(self.module, self.optimizer, self.ema)
        self.saved_at, self.saved_step = time.monotonic(), 0
        self.judged: dict[str, Any] = {}
        self.figures: dict[str, Any] = {}
        self._stop_reason = stop_reason
        self.loop = self._loop()
        self.state = self._resumed()

    def epoch(self) -> dict[str, Any]:
        """Train one epoch and return its line as `metrics.jsonl` of a training would have it.

        Raises:
            Stopped: It shall pause; a checkpoint is saved.
            TrainingDiverged: The loss is no number any more.
        """
        self.state = self.loop.train_epoch(self.state)
        return self.figures

    @property
    def value(self) -> float | None:
        """The metric that ranks, after the last epoch; None where the validation split leaves it undefined."""
        found = self.judged.get(self.spec.best_by)
        return None if found is None else float(found)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are behind, or patience has run out."""
        return self.state.epoch >= self.spec.epochs or self.state.should_stop_early(self.spec.patience)

    def write_candidate(self, folder: Path) -> None:
        """Write the head as it is now."""
        tensors = {MODULE: self.ema.module.state_dict()}
        write_checkpoint_folder(folder, tensors=tensors, json_files={}, manifest={"attempt": self.attempt})

    def save(self, state: TrainState) -> None:
        """Write a checkpoint to go on from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint.save(self.folder, state, attempt=self.attempt)
        self.saved_at, self.saved_step = time.monotonic(), state.step

    def save_last_epoch(self) -> None:
        """Save a checkpoint of the last epoch, unless a later one is saved."""
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
        )

    def on_optimizer_step(self) -> None:
        """Update the EMA."""
        self.ema.update()

    def stop_reason(self) -> str | None:
        """Return why it should pause."""
        return self._stop_reason()

    def validate(self) -> dict[str, Any]:
        """Score the validation split."""
        data = self.data
        self.judged = epoch_metrics(
            model_outputs(self.ema.module, data.loader, data.index, "valid", data.context.process_group)
        )
        return self.judged

    def save_checkpoint(self, state: TrainState, is_best: bool) -> None:  # noqa: ARG002 -- the search keeps the best
        """Save now and then; within an epoch always, for there the loop saves only when it stops."""
        if state.batch or time.monotonic() - self.saved_at >= CHECKPOINT_SECONDS:
            self.save(state)

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Keep the line of the epoch."""
        self.figures = metrics.to_json()

    def _resumed(self) -> TrainState:
        found = latest_valid_checkpoint(self.folder)
        if found is None:
            return TrainState()
        state = self.checkpoint.load(found)
        self.saved_step = state.step
        if state.epoch and not state.batch:
            self.validate()
        return state
