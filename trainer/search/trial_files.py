"""What the trials of a search keep on the shared storage: folders, candidate models, and the signal to pause."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.lease import Lease
from cluster.run_paths import RunPaths
from cluster.stop_request import StopRequest, StopWatcher
from trainer.model.checkpoint_folder import write_checkpoint_folder
from trainer.training.checkpointer import MODULE


def trial_folder(checkpoints: Path, trial: int) -> Path:
    """Return the folder of a trial's own checkpoints."""
    return checkpoints / f"trial-{trial:06d}"


def repeat_folder(checkpoints: Path, trial: int, repeat: int) -> Path:
    """Return the folder of one repeat of a trial."""
    return trial_folder(checkpoints, trial) / f"repeat-{repeat}"


def write_candidate(
    checkpoints: Path,
    tensors: Mapping[str, Tensor],
    *,
    trial: int,
    epoch: int,
    lease: Lease,
    beside: Mapping[str, Mapping[str, Tensor]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> str:
    """Save the weights of an epoch that may be the best of the search; return the name of their folder.

    Args:
        checkpoints: Of the search.
        tensors: The weights.
        trial: Number of the trial.
        epoch: Number of the epoch.
        lease: Of the attempt that writes.
        beside: Further files of the folder.
        about: Goes into its manifest.
    """
    name = f"candidate-{trial:06d}-{epoch:06d}"
    write_checkpoint_folder(
        checkpoints / name,
        lease=lease,
        tensors={MODULE: tensors, **(beside or {})},
        json_files={},
        manifest={"attempt": lease.attempt, **(about or {})},
    )
    return name


@dataclass
class PauseSignal:
    """Tells the trials of one attempt to save a checkpoint and pause, on every machine that shares the storage.

    A trial pauses at this signal and at the run's own `stop.json`.

    Attributes:
        every_seconds: Between two looks at the storage; 0: each time that it is asked.
    """

    paths: RunPaths
    attempt: int
    every_seconds: float = 0.0

    def __post_init__(self) -> None:
        pause = self.paths.scratch / f"pause-{self.attempt}" / "stop.json"
        self._pause = StopWatcher(pause, self.attempt, self.every_seconds)
        self._stop = StopWatcher(self.paths.stop, self.attempt, self.every_seconds)

    def send(self) -> None:
        """Tell all trials to pause."""
        self._pause.file.parent.mkdir(parents=True, exist_ok=True)
        StopRequest("window", self.attempt).publish(self._pause.file)

    def run_stop_reason(self) -> str | None:
        """Return why the whole run should stop, or None."""
        return self._stop.reason()

    def reason(self) -> str | None:
        """Return why a trial should pause, or None."""
        return self._stop.reason() or self._pause.reason()
