"""Counts of runs that ended and histograms of their times, for Prometheus."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from prometheus_client import Counter, Histogram, disable_created_metrics
from prometheus_client.metrics_core import Metric

from cluster.errors import ClusterError
from cluster.run_paths import RunPaths
from jobs.runs import state as run_state
from jobs.runs.state import ENDED, RunState, seconds_between
from trainer.specs import AnySpec

SECONDS = (10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0)  # upper bounds, of a job to a night
KINDS: tuple[str, ...] = tuple(spec.model_fields["kind"].default for spec in get_args(AnySpec))


class RunCounters:
    """Counts the runs that end after the first call; earlier ones are not counted.

    Every series begins at 0, because Prometheus' `increase` does not see the step from an absent series to 1.
    The histograms have the first end of a run only: a retry keeps the times of the submission and of the first start,
    so a later end would add the time for which the run had ended.
    """

    def __init__(self, storage: Path) -> None:
        """Store the folder; nothing is read before the first call."""
        # A second series for each, which nobody reads; a switch of the whole process.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.storage = storage
        self._lock = threading.Lock()  # several scrapes at a time
        self._known: set[str] | None = None  # ids of runs that are counted, or had ended before
        self._ended_once: set[str] = set()  # these, and those of them that were retried
        text = "Runs that ended."
        self._ended = Counter("nightshift_runs_ended", text, ["kind", "state"], registry=None)
        text = "Seconds from the submission of a run to its first start, of runs that ended."
        self._waited = Histogram("nightshift_run_waiting_seconds", text, ["kind"], buckets=SECONDS, registry=None)
        text = "Seconds from the first start of a run to its first end."
        labels = ["kind", "state"]
        self._ran = Histogram("nightshift_run_running_seconds", text, labels, buckets=SECONDS, registry=None)
        for kind in KINDS:
            self._waited.labels(kind)
            for state in sorted(ENDED):
                self._ended.labels(kind, state)
                self._ran.labels(kind, state)

    def metrics(self, pending: Iterable[str]) -> list[Metric]:
        """Return the metrics; `pending` are the ids of the runs that have not ended."""
        with self._lock:
            self._update(set(pending))
            return [*self._ended.collect(), *self._waited.collect(), *self._ran.collect()]

    def _update(self, pending: set[str]) -> None:
        existing = set(run_state.all_ids(self.storage))
        ended = existing - pending
        if self._known is None:
            self._known, self._ended_once = ended, set(ended)
        for run_id in sorted(ended - self._known):
            try:
                state = run_state.read_state(RunPaths.of(self.storage, run_id))
            except ClusterError:
                continue  # deleted or damaged
            if state.state in ENDED:
                self._count(state, is_first_end=run_id not in self._ended_once)
                self._known.add(run_id)
                self._ended_once.add(run_id)
        self._known &= ended  # a run that is retried is counted again when it ends again
        self._ended_once &= existing

    def _count(self, state: RunState, *, is_first_end: bool) -> None:
        self._ended.labels(state.kind, state.state).inc()
        if state.started is None or not is_first_end:
            return
        self._waited.labels(state.kind).observe(seconds_between(state.created, state.started))
        if state.ended is not None:
            self._ran.labels(state.kind, state.state).observe(seconds_between(state.started, state.ended))
