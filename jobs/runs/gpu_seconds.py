"""GPU seconds of running runs by owner, for Prometheus."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import Counter
from prometheus_client.metrics_core import Metric

from cluster.run_paths import RunPaths
from jobs.runs.record import read_progress
from jobs.runs.state import RunState

LONGEST_SECONDS = 300.0  # between two scrapes; what ran in a longer gap is not known
MOST_GPUS = 100_000  # of one run; a larger number is damage


class GpuSeconds:
    """Multiplies the GPUs that runs use at a scrape by the seconds since the scrape before.

    The GPUs are those of the workers, as `progress.json` states them: a run that waits for machines uses none.
    The series of an owner begins at 0, because Prometheus' `increase` does not see the first value of a series.
    """

    def __init__(self, storage: Path, now: Callable[[], float] = time.monotonic) -> None:
        """Store the folder; nothing is read before the first call.

        Args:
            storage: The storage.
            now: A clock, in seconds.
        """
        self.storage = storage
        self.now = now
        self._lock = threading.Lock()  # several scrapes at a time
        self._owners: set[str] = set()
        self._last: float | None = None
        text = "Seconds for which GPUs were used, times their number; owner is empty for runs without one."
        self._seconds = Counter("nightshift_gpu_seconds", text, ["owner"], registry=None)

    def metrics(self, pending: Iterable[RunState]) -> list[Metric]:
        """Return the metric; `pending` are the runs that have not ended."""
        with self._lock:
            moment = self.now()
            passed = 0.0 if self._last is None else min(moment - self._last, LONGEST_SECONDS)
            self._last = moment
            for owner, gpus in self._used(pending).items():
                counter = self._seconds.labels(owner)
                if owner in self._owners:
                    counter.inc(gpus * passed)
                self._owners.add(owner)
            return list(self._seconds.collect())

    def _used(self, pending: Iterable[RunState]) -> dict[str, float]:
        """Return how many GPUs the runs of each owner use; 0 if they only wait."""
        found: defaultdict[str, float] = defaultdict(float)
        for state in pending:
            found[state.owner or ""] += self._gpus_of(state) if state.state == "running" else 0.0
        return found

    def _gpus_of(self, state: RunState) -> float:
        progress = read_progress(RunPaths.of(self.storage, state.id))
        gpus = progress.get("gpus", 0)  # absent in runs of version 0.1.0
        return float(gpus) if progress.get("attempt") == state.attempt and 0 < gpus <= MOST_GPUS else 0.0
