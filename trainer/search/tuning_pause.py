"""The sign by which a search tells its trials to save a checkpoint and wait: its own, and the run's `stop.json`."""

from dataclasses import dataclass

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.stop_request import StopSign


@dataclass
class PauseSign:
    """Seen by every trial of one attempt, on every machine that shares the storage."""

    paths: RunPaths
    attempt: int

    def __post_init__(self) -> None:
        # A run folder within the scratch: the same file, looked for as seldom.
        self._asked = StopSign(RunPaths(self.paths.scratch / f"pause-{self.attempt}"), self.attempt)
        self._stop = StopSign(self.paths, self.attempt)

    def ask(self, reason: str) -> None:
        """Tell all trials to pause."""
        folder = self._asked.paths.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self._asked.paths.stop, {"reason": reason, "attempt": self.attempt})

    def stopped(self) -> str | None:
        """Return why the whole run shall stop, or None."""
        return self._stop.reason()

    def reason(self) -> str | None:
        """Return why a trial shall pause, or None."""
        return self._stop.reason() or self._asked.reason()
