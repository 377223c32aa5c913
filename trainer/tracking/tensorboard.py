"""TensorBoard event files beside the report: `tensorboard --logdir STORAGE/runs` shows all runs as they go."""

from dataclasses import dataclass, field
from typing import Any

from cluster.run_paths import RunPaths
from trainer.tracking.history import EpochHistory, EpochMetrics


@dataclass
class TensorBoardWriter:
    """The event files of one attempt, which replace those of the attempts before it."""

    paths: RunPaths
    _shown: EpochHistory = field(default_factory=dict)
    _writers: dict[str, Any] = field(default_factory=dict)

    def show(self, curves: EpochHistory) -> None:
        """Write what is new; a curve anew where what was written has changed, as when epochs run again.

        Raises:
            OSError: The storage is full.
        """
        for series, points in curves.items():
            before = self._shown.get(series, ())
            if series not in self._writers or points[: len(before)] != before:
                self._begin(series)
                before = ()
            self._write(series, points[len(before) :])
            self._shown[series] = points

    def end(self, status: str, figures: dict[str, Any]) -> None:  # noqa: ARG002, curves are all that is shown here
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _begin(self, series: str) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- only when there is something to write

        if series in self._writers:
            self._writers.pop(series).close()
        folder = self.paths.events / series
        for old in folder.glob("events.*"):
            old.unlink()
        self._writers[series] = SummaryWriter(str(folder))

    def _write(self, series: str, points: tuple[EpochMetrics, ...]) -> None:
        for point in points:
            for name, value in point.figures.items():
                self._writers[series].add_scalar(name, value, point.epoch, point.moment)
        self._writers[series].flush()
