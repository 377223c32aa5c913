"""TensorBoard event files in the run folder: `tensorboard --logdir STORAGE/runs` shows all runs while they train."""

from dataclasses import dataclass, field
from typing import Any

from cluster.run_paths import RunPaths
from trainer.tracking.history import EpochHistory, LoggedEpoch


@dataclass
class TensorBoardWriter:
    """Writes the event files of one attempt, which replace those of earlier attempts."""

    paths: RunPaths
    _written: EpochHistory = field(default_factory=dict)
    _writers: dict[str, Any] = field(default_factory=dict)

    def log_epochs(self, history: EpochHistory) -> None:
        """Write the new epochs; rewrite a series whose earlier epochs changed, as when epochs are repeated.

        Raises:
            OSError: The storage is full.
        """
        for series, epochs in history.items():
            written = self._written.get(series, ())
            if series not in self._writers or epochs[: len(written)] != written:
                self._open(series)
                written = ()
            self._write(series, epochs[len(written) :])
            self._written[series] = epochs

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()

    def _open(self, series: str) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- only when there is something to write

        if series in self._writers:
            self._writers.pop(series).close()
        folder = self.paths.events / series
        for old in folder.glob("events.*"):
            old.unlink()
        self._writers[series] = SummaryWriter(str(folder))

    def _write(self, series: str, epochs: tuple[LoggedEpoch, ...]) -> None:
        for epoch in epochs:
            for name, value in epoch.metrics.items():
                self._writers[series].add_scalar(name, value, epoch.epoch, epoch.timestamp)
        self._writers[series].flush()
