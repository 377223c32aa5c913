"""Counts of runs that ended and histograms of their times, for Prometheus."""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from cluster.errors import ClusterError
from cluster.run_paths import RUN_ID, RunPaths
from jobs.runs import state as run_state
from jobs.runs.state import ENDED, RunState

SECONDS = (10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0)  # upper bounds, of a job to a night


@dataclass
class Histogram:
    """Counts of values by upper bound; the last count is of those above all bounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.counts[sum(seconds > bound for bound in SECONDS)] += 1
        self.total += seconds

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Bounds and cumulative counts, as Prometheus has them."""
        bounds = [*map(str, SECONDS), "+Inf"]
        return [(bound, float(sum(self.counts[: place + 1]))) for place, bound in enumerate(bounds)]


class RunCounters:
    """Counts the runs that end after the first call; earlier ones are not counted."""

    def __init__(self, storage: Path) -> None:
        """Store the folder; nothing is read before the first call."""
        self.storage = storage
        self._lock = threading.Lock()  # several scrapes at a time
        self._known: set[str] | None = None
        self._ended: Counter[tuple[str, str]] = Counter()
        self._waited: dict[str, Histogram] = {}
        self._ran: dict[tuple[str, str], Histogram] = {}

    def metrics(self, pending: Iterable[str]) -> list[Metric]:
        """Return the metrics; `pending` are the ids of the runs that have not ended."""
        with self._lock:
            self._update(set(pending))
            return [self._counter(), self._waiting_times(), self._running_times()]

    def _update(self, pending: set[str]) -> None:
        ids = {run_id for run_id in run_state.all_ids(self.storage) if RUN_ID.fullmatch(run_id)} - pending
        if self._known is None:
            self._known = ids
        for run_id in sorted(ids - self._known):
            try:
                state = run_state.read_state(RunPaths.of(self.storage, run_id))
            except ClusterError:
                continue  # deleted or damaged
            if state.state in ENDED:
                self._count(state)
                self._known.add(run_id)
        self._known &= ids  # a run that is retried is counted again when it ends again

    def _count(self, state: RunState) -> None:
        self._ended[state.kind, state.state] += 1
        if state.started is None:
            return
        waited = _seconds(state.created, state.started)
        self._waited.setdefault(state.kind, Histogram()).add(waited)
        if state.ended is not None:
            self._ran.setdefault((state.kind, state.state), Histogram()).add(_seconds(state.started, state.ended))

    def _counter(self) -> Metric:
        ended = CounterMetricFamily("nightshift_runs_ended", "Runs that ended.", labels=["kind", "state"])
        for labels, count in sorted(self._ended.items()):
            ended.add_metric(labels, count)
        return ended

    def _waiting_times(self) -> Metric:
        text = "Seconds from the submission of a run to its first start, of runs that ended."
        waited = HistogramMetricFamily("nightshift_run_waiting_seconds", text, labels=["kind"])
        for kind, histogram in sorted(self._waited.items()):
            waited.add_metric([kind], histogram.buckets, histogram.total)
        return waited

    def _running_times(self) -> Metric:
        text = "Seconds from the first start of a run to its end."
        ran = HistogramMetricFamily("nightshift_run_running_seconds", text, labels=["kind", "state"])
        for labels, histogram in sorted(self._ran.items()):
            ran.add_metric(labels, histogram.buckets, histogram.total)
        return ran


def _seconds(start: str, end: str) -> float:
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
