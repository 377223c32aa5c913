"""The signal by which a search tells its trials to save a checkpoint and wait: its own, and the run's `stop.json`."""

from dataclasses import dataclass

from cluster.run_paths import RunPaths
from cluster.stop_request import StopRequest, StopWatcher


@dataclass
class PauseSignal:
    """Seen by every trial of one attempt, on every machine that shares the storage."""

    paths: RunPaths
    attempt: int

    def __post_init__(self) -> None:
        self._pause = StopWatcher(self.paths.scratch / f"pause-{self.attempt}" / "stop.json", self.attempt)
        self._stop = StopWatcher(self.paths.stop, self.attempt)

    def ask(self) -> None:
        """Tell all trials to pause."""
        self._pause.file.parent.mkdir(parents=True, exist_ok=True)
        StopRequest("window", self.attempt).publish(self._pause.file)

    def stopped(self) -> str | None:
        """Return why the whole run should stop, or None."""
        return self._stop.reason()

    def reason(self) -> str | None:
        """Return why a trial should pause, or None."""
        return self._stop.reason() or self._pause.reason()
