"""What a training leaves behind as it goes: checkpoints, the best model so far, a line an epoch."""

import json
import logging
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cluster.files import append_line, read_json, read_lines, write_text
from trainer.distributed.worker import WorkerContext
from trainer.model.checkpoint_folder import (
    KEEP,
    latest_valid_checkpoint,
    read_tensors,
    read_verified_manifest,
    remove_old_checkpoints,
    step_folder,
    write_checkpoint_folder,
)
from trainer.training.ema import ModelEma
from trainer.training.optimizer import load_optimizer, optimizer_tensors
from trainer.training.train_state import TrainState

MINUTES_BETWEEN = 10.0  # between checkpoints within an epoch

logger = logging.getLogger(__name__)


class Checkpointer:
    """The files of one training. Only the leading rank writes; every rank reads when it resumes.

    Attributes:
        module: What trains, in one phase or another.
        average: Of the module: what is the best, when it is.
    """

    def __init__(
        self, context: WorkerContext, module: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEma
    ) -> None:
        self.attempt = context.task.attempt
        self.paths = context.task.paths
        self.folder = self.paths.checkpoints
        self.process_group, self.module, self.optimizer, self.ema = context.process_group, module, optimizer, ema
        self.state = CheckpointState(module, optimizer, ema)
        self.saved = time.monotonic()

    def save_is_due(self) -> bool:
        """Return whether the last checkpoint is long ago."""
        return time.monotonic() - self.saved >= MINUTES_BETWEEN * 60

    def save(self, state: TrainState, is_best: bool) -> None:
        """Write a checkpoint, and the module as the best one when it is.

        Raises:
            CheckpointError: The storage is full; the checkpoints before this one stay.
            LeaseLost: A newer attempt owns the run.
        """
        self.attempt.lease.check()
        attempt = self.attempt.number
        if is_best:
            best = {MODULE: self.ema.module.state_dict()}
            write_checkpoint_folder(self._best(state), tensors=best, json_files={}, manifest={"attempt": attempt})
        self.state.write(self.folder, state, attempt=attempt)
        self.saved = time.monotonic()
        for old in sorted(self.folder.glob("best-*"))[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> TrainState:
        """Load the newest undamaged checkpoint on every rank and return its position; the start when there is none."""
        name = self.process_group.broadcast(self._newest() if self.process_group.is_rank_zero else None)
        if name is None:
            return TrainState()
        state = self.state.read(self.folder / name)
        if self.process_group.is_rank_zero:
            logger.info("going on from %s: epoch %d, step %d", name, state.epoch + 1, state.step)
            self._forget_after(state.epoch)
        return state

    def load_best(self, state: TrainState) -> None:
        """Put the best epoch's tensors into the module, on every rank.

        Raises:
            CheckpointError: They are damaged.
        """
        folder = self._best(state)
        read_verified_manifest(folder)
        self.module.load_state_dict(read_tensors(folder / MODULE))

    def record(self, figures: dict[str, Any]) -> None:
        """Append an epoch's line to `metrics.jsonl`."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        append_line(self.paths.metrics, {**figures, "attempt": self.attempt.number, "time": now})

    def _best(self, state: TrainState) -> Path:
        return self.folder / f"best-{state.best_epoch:06d}"

    def _newest(self) -> str | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob(".*"):
            shutil.rmtree(torn, ignore_errors=True)  # what a kill left half written
        found = latest_valid_checkpoint(self.folder)
        return None if found is None else found.name

    def _forget_after(self, epoch: int) -> None:
        """Drop the lines of epochs that will be run again."""
        path = self.paths.metrics
        kept = [line for line in read_lines(path) if line["epoch"] <= epoch]
        write_text(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))


MODULE, OPTIMIZER, TRAIN_STATE = "module.safetensors", "optimizer.safetensors", "position.json"


@dataclass(frozen=True)
class CheckpointState:
    """All that changes as a training goes on, but for its position."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEma

    def write(self, checkpoints: Path, state: TrainState, *, attempt: int) -> None:
        """Write a checkpoint into the folder of all, and remove those that are too old.

        Raises:
            CheckpointError: The storage is full; the checkpoints before this one stay.
        """
        write_checkpoint_folder(
            step_folder(checkpoints, state.step),
            tensors={
                MODULE: self.module.state_dict(),
                OPTIMIZER: optimizer_tensors(self.optimizer),
                **self.ema.checkpoint,
            },
            json_files={TRAIN_STATE: state.to_json()},
            manifest={"attempt": attempt},
        )
        remove_old_checkpoints(checkpoints)

    def read(self, checkpoint: Path) -> TrainState:
        """Take over what `write` left in a folder that has been checked, and return where that was."""
        self.module.load_state_dict(read_tensors(checkpoint / MODULE))
        load_optimizer(self.optimizer, read_tensors(checkpoint / OPTIMIZER))
        self.ema.read(checkpoint)
        return TrainState.from_json(read_json(checkpoint / TRAIN_STATE))
