"""Counts of runs that ended and of attempts that were lost, and histograms of times, for Prometheus."""

import threading
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import Counter, Histogram, disable_created_metrics
from prometheus_client.metrics_core import Metric

from cluster.errors import ClusterError, StorageError
from cluster.files import read_json_object
from cluster.run_paths import RunPaths
from jobs.runs import state as run_state
from jobs.runs.run_filter import KINDS
from jobs.runs.state import ENDED, RunState, seconds_between

SECONDS = (10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0)  # upper bounds, of a job to a night
SOURCES = ("cached", "computed")  # of features, as `result.json` names them
MOST_IMAGES = 1_000_000_000  # of one run; a larger number is damage


class RunCounters:
    """Counts the runs that end after the first call, and the attempts that are lost; earlier ones are not counted.

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
        self._losses: dict[str, int] = {}  # of the runs that have not ended: the lost attempts that are counted
        text = "Runs that ended."
        self._ended = Counter("nightshift_runs_ended", text, ["kind", "state"], registry=None)
        text = "Attempts that the infrastructure ended, of runs with retries left too."
        self._lost = Counter("nightshift_attempts_lost", text, ["kind"], registry=None)
        text = "Images whose features of a frozen backbone were in the cache or computed, of runs that succeeded."
        self._features = Counter("nightshift_feature_images", text, ["source"], registry=None)
        text = "Seconds from the submission of a run to its first start, of runs that ended."
        self._waited = Histogram("nightshift_run_waiting_seconds", text, ["kind"], buckets=SECONDS, registry=None)
        text = "Seconds from the first start of a run to its first end."
        labels = ["kind", "state"]
        self._ran = Histogram("nightshift_run_running_seconds", text, labels, buckets=SECONDS, registry=None)
        for source in SOURCES:
            self._features.labels(source)
        for kind in KINDS:
            self._lost.labels(kind)
            self._waited.labels(kind)
            for state in sorted(ENDED):
                self._ended.labels(kind, state)
                self._ran.labels(kind, state)

    def metrics(self, pending: Mapping[str, RunState | None] | None) -> list[Metric]:
        """Return the metrics.

        Args:
            pending: The states of the runs that have not ended, by id; None where it cannot be read. None without the
                storage: nothing is counted.
        """
        with self._lock:
            if pending is not None:
                self._update(pending)
            own = (self._ended, self._lost, self._features, self._waited, self._ran)
            return [metric for counter in own for metric in counter.collect()]

    def _update(self, pending: Mapping[str, RunState | None]) -> None:
        ended = set(run_state.all_ids(self.storage)) - pending.keys()
        if self._known is None:
            self._known, self._ended_once = ended, set(ended)
            self._losses = {run_id: state.losses for run_id, state in pending.items() if state is not None}
        for state in filter(None, pending.values()):
            self._count_losses(state)
        for run_id in sorted(ended - self._known):
            try:
                state = run_state.read_state(RunPaths.of(self.storage, run_id))
            except ClusterError:
                continue  # deleted or damaged
            if state.state in ENDED:
                self._count_losses(state)
                self._count_end(state, is_first_end=run_id not in self._ended_once)
                self._known.add(run_id)
                self._ended_once.add(run_id)
        self._known -= pending.keys()  # a run that is retried is counted again when it ends again
        # A retry of a run that has ended begins with no lost attempts.
        self._losses = {run_id: losses for run_id, losses in self._losses.items() if run_id in pending}

    def _count_losses(self, state: RunState) -> None:
        counted = self._losses.get(state.id, 0)
        new = state.losses - counted if state.losses >= counted else state.losses  # fewer: it was retried meanwhile
        self._lost.labels(state.kind).inc(new)
        self._losses[state.id] = state.losses

    def _count_end(self, state: RunState, *, is_first_end: bool) -> None:
        self._ended.labels(state.kind, state.state).inc()
        if state.state == "succeeded":
            self._count_features(state.id)
        if state.started is None or not is_first_end:
            return
        self._waited.labels(state.kind).observe(seconds_between(state.created, state.started))
        if state.ended is not None:
            self._ran.labels(state.kind, state.state).observe(seconds_between(state.started, state.ended))

    def _count_features(self, run_id: str) -> None:
        try:
            counts = read_json_object(RunPaths.of(self.storage, run_id).result).get("features")
        except StorageError:  # deleted or damaged
            return
        if isinstance(counts, dict):  # absent in results of version 0.1.0
            for source in SOURCES:
                number = counts.get(source)
                if type(number) is int and 0 <= number <= MOST_IMAGES:
                    self._features.labels(source).inc(number)
