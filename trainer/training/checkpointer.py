"""Saves and loads checkpoints of a training, its best model, and its metrics.jsonl."""

import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cluster.files import read_json
from cluster.lease import Lease
from cluster.run_paths import TrialPaths
from trainer.distributed.worker import WorkerContext
from trainer.evaluation.scoring import ModelOutputs
from trainer.evaluation.trial_outputs import EpochOutputs, trial_of, write_trial_outputs
from trainer.model.checkpoint_folder import (
    CHECKPOINTS_TO_KEEP,
    latest_valid_checkpoint,
    read_tensors,
    read_verified_manifest,
    remove_old_checkpoints,
    step_folder,
    write_checkpoint_folder,
)
from trainer.specs import TrainSpec
from trainer.tracking.history import epoch_lines, read_metrics
from trainer.training.ema import ModelEma
from trainer.training.loop import EpochMetrics
from trainer.training.optimizer import load_optimizer, load_scaler, optimizer_tensors, scaler_tensors
from trainer.training.train_state import TrainState

MODULE, OPTIMIZER, TRAIN_STATE = "module.safetensors", "optimizer.safetensors", "position.json"
SCALER = "scaler.safetensors"
SAVE_INTERVAL_SECONDS = 600.0  # between checkpoints within an epoch
ELASTIC_INTERVAL_SECONDS = 60.0  # the same, where each machine that comes or goes starts the workers again

Validated: TypeAlias = tuple[ModelOutputs, dict[str, Any]]
TensorFiles: TypeAlias = dict[str, dict[str, Tensor]]  # tensors by the name of their file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingCheckpoint:
    """Everything that changes during a training except its `TrainState`.

    Attributes:
        scaler: Scales the loss in float16; None in other precisions.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEma
    scaler: torch.amp.GradScaler | None = None

    def save(self, checkpoints: Path, state: TrainState, *, lease: Lease) -> None:
        """Write a checkpoint into the folder of all checkpoints, and remove old ones.

        Raises:
            LeaseLost: A newer attempt owns the run.
            CheckpointError: The storage is full; the earlier checkpoints stay.
        """
        write_training_checkpoint(checkpoints, state, self.tensors(), lease=lease)

    def tensors(self) -> TensorFiles:
        """Return all tensors of a checkpoint; they change with the next step."""
        return {
            MODULE: self.module.state_dict(),
            OPTIMIZER: optimizer_tensors(self.optimizer),
            **self.ema.state_files(),
            **({} if self.scaler is None else {SCALER: scaler_tensors(self.scaler)}),
        }

    def load(self, checkpoint: Path) -> TrainState:
        """Load a verified checkpoint that `save` wrote, and return its state."""
        self.module.load_state_dict(read_tensors(checkpoint / MODULE))
        load_optimizer(self.optimizer, read_tensors(checkpoint / OPTIMIZER))
        self.ema.load(checkpoint)
        if self.scaler is not None and (checkpoint / SCALER).exists():
            load_scaler(self.scaler, read_tensors(checkpoint / SCALER))
        return TrainState.from_json(read_json(checkpoint / TRAIN_STATE))


def write_training_checkpoint(checkpoints: Path, state: TrainState, tensors: TensorFiles, *, lease: Lease) -> None:
    """Write a checkpoint into the folder of all checkpoints, and remove old ones.

    Raises:
        LeaseLost: A newer attempt owns the run.
        CheckpointError: The storage is full; the earlier checkpoints stay.
    """
    write_checkpoint_folder(
        step_folder(checkpoints, state.step),
        lease=lease,
        tensors=tensors,
        json_files={TRAIN_STATE: state.to_json()},
        manifest={"attempt": lease.attempt},
    )
    remove_old_checkpoints(checkpoints, lease)


class Checkpointer:
    """Saves and loads the files of one training. Only rank 0 writes; every rank loads.

    A thread writes: the training waits only until the tensors are copied, and until the write before has ended. Use
    it in a `with` block, at whose end everything is written.

    Attributes:
        module: Everything that trains in any phase.
        ema: Average of the module; an epoch's best model is a copy of it.
        validated: Outputs and metrics of the last validation; None before the first.
    """

    def __init__(
        self,
        context: WorkerContext[TrainSpec],
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: ModelEma,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.attempt, self.paths = context.task.attempt, context.task.paths
        self.folder = self.paths.checkpoints
        self.process_group, self.module, self.optimizer, self.ema = context.process_group, module, optimizer, ema
        self.checkpoint = TrainingCheckpoint(module, optimizer, ema, scaler)
        self.saved_at = time.monotonic()
        self.best_by = context.spec.best_by
        self.interval = ELASTIC_INTERVAL_SECONDS if context.spec.is_elastic else SAVE_INTERVAL_SECONDS
        self.validated: Validated | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._write: Future[None] | None = None  # the last one

    def __enter__(self) -> "Checkpointer":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the last write; its error is raised unless the training has failed with another."""
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            logger.warning("the last checkpoint is not saved: %s", failed)
        finally:
            self._thread.shutdown()

    def save_is_due(self) -> bool:
        """Return whether the last checkpoint is older than the interval."""
        return time.monotonic() - self.saved_at >= self.interval

    def save(self, state: TrainState, is_best: bool) -> None:
        """Start to save a checkpoint, and the EMA as the best model when `is_best`; `wait` returns when it is written.

        Raises:
            CheckpointError: The storage was full at the write before; the earlier checkpoints stay.
            LeaseLost: A newer attempt owned the run at the write before.
        """
        self.wait()
        tensors = _copies(self.checkpoint.tensors())
        best = _copies({MODULE: self.ema.module.state_dict()}) if is_best else None
        self._write = self._thread.submit(self._save, replace(state), tensors, best, self.validated)
        self.saved_at = time.monotonic()

    def wait(self) -> None:
        """Return when the last checkpoint is written.

        Raises:
            CheckpointError: The storage is full; the earlier checkpoints stay.
            LeaseLost: A newer attempt owns the run.
        """
        if self._write is not None:
            write, self._write = self._write, None
            write.result()

    def _save(
        self, state: TrainState, tensors: TensorFiles, best: TensorFiles | None, validated: Validated | None
    ) -> None:
        lease = self.attempt.lease
        if best:
            self._keep_outputs(state, validated)
            write_checkpoint_folder(
                self._best(state), lease=lease, tensors=best, json_files={}, manifest={"attempt": lease.attempt}
            )
        write_training_checkpoint(self.folder, state, tensors, lease=lease)
        for old in sorted(self.folder.glob("best-*"))[:-CHECKPOINTS_TO_KEEP]:
            lease.remove(old)

    def resume(self) -> TrainState:
        """Load the newest undamaged checkpoint on every rank and return its state; a new state if there is none."""
        name = self.process_group.broadcast(self._newest_good() if self.process_group.is_rank_zero else None)
        if name is None:
            return TrainState()
        state = self.checkpoint.load(self.folder / name)
        if self.process_group.is_rank_zero:
            logger.info("resuming from %s: epoch %d, step %d", name, state.epoch + 1, state.step)
            self._remove_metrics_after(state.epoch)
        return state

    def load_best(self, state: TrainState) -> None:
        """Load the best epoch's weights into the module, on every rank.

        Raises:
            CheckpointError: They are damaged, or could not be written.
            LeaseLost: A newer attempt owns the run.
        """
        self.wait()
        self.process_group.barrier()
        folder = self._best(state)
        read_verified_manifest(folder)
        self.module.load_state_dict(read_tensors(folder / MODULE))

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Append the epoch's line to `metrics.jsonl` after the checkpoint of the epoch before is written.

        It is logged, too, unless it is of a trial.

        Raises:
            CheckpointError: That checkpoint could not be written.
            LeaseLost: A newer attempt owns the run.
        """
        self.wait()
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self.attempt.lease.append_line(self.paths.metrics, {**metrics.to_json(), "time": now})
        if not isinstance(self.paths, TrialPaths):
            logger.info("%s", metrics)

    def _keep_outputs(self, state: TrainState, validated: Validated | None) -> None:
        """Keep the outputs of the best epoch of a search's trial: the search compares its trials by them."""
        trial = trial_of(self.paths.folder) if isinstance(self.paths, TrialPaths) else None
        if trial is None or validated is None:
            return
        outputs, metrics = validated
        about = EpochOutputs(trial=trial, epoch=state.best_epoch, value=float(metrics[self.best_by]))
        write_trial_outputs(self.paths.folder.parent, about, [outputs], self.attempt.lease, has_groups=False)

    def _best(self, state: TrainState) -> Path:
        return self.folder / f"best-{state.best_epoch:06d}"

    def _newest_good(self) -> str | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for draft in self.folder.glob(".*"):
            self.attempt.lease.remove(draft)  # a killed process of version 0.1.0 left it incomplete
        newest = latest_valid_checkpoint(self.folder)
        return None if newest is None else newest.name

    def _remove_metrics_after(self, epoch: int) -> None:
        """Remove the lines of epochs that will be trained again, and the damaged ones."""
        path = self.paths.metrics
        found = read_metrics(path)
        if found.warning:
            logger.warning("%s", found.warning)
        kept = [line for line in epoch_lines(found) if line["epoch"] <= epoch]
        self.attempt.lease.write_text(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))


def _copies(files: TensorFiles) -> TensorFiles:
    """Return copies on the CPU, which the next step of the training does not change."""
    return {
        name: {key: value.detach().to("cpu", copy=True) for key, value in group.items()}
        for name, group in files.items()
    }
