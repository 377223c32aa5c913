"""Prometheus metrics of queues, job workers and runs, at `k8s metrics` and at `worker --metrics-port`."""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import redis
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cluster.errors import ClusterError
from cluster.run_paths import RUN_ID, RunPaths
from cluster.settings import Settings
from jobs.errors import JobError, Refused
from jobs.queue import queues
from jobs.queue.connection import connect
from jobs.queue.worker_list import SERVING_STATES, serving_workers
from jobs.runs import state as run_state
from jobs.runs.counters import RunCounters
from jobs.runs.gpu_seconds import GpuSeconds
from jobs.runs.state import PRIORITIES, RunState


class Metrics(Collector):
    """Reads the queue and the run folders at each scrape, so that the values are correct after any restart."""

    def __init__(self, settings: Settings) -> None:
        """Store the settings; nothing is read before the first scrape."""
        self.settings = settings
        self.counters = RunCounters(settings.storage)
        self.gpu_seconds = GpuSeconds(settings.storage)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics.

        Without Redis, `nightshift_redis_up` is 0 and the metrics of the queue are absent; without the storage,
        `nightshift_storage_up` is 0, the metrics of pending runs are absent, and the counters stay as they are.
        """
        pending = self._pending()
        states = [state for state in (pending or {}).values() if state is not None]
        up = GaugeMetricFamily("nightshift_storage_up", "Whether the folder of the runs can be listed.")
        up.add_metric([], int(pending is not None))
        yield up
        if pending is not None:
            yield from _runs(states)
        yield from self.counters.metrics(pending)
        yield from self.gpu_seconds.metrics(states)
        yield from self._queue()

    def _pending(self) -> dict[str, RunState | None] | None:
        """Return the runs that have not ended, None for one that cannot be read; None without the storage."""
        storage = self.settings.storage
        try:
            ids = [run_id for run_id in run_state.pending_ids(storage) if RUN_ID.fullmatch(run_id)]
            found = {run_id: self._state(run_id) for run_id in ids}
            self.settings.with_storage_readable()  # last: a storage that is away looks like one without runs
        except (ClusterError, OSError):
            return None
        return found

    def _state(self, run_id: str) -> RunState | None:
        try:
            return run_state.read_state(RunPaths.of(self.settings.storage, run_id))
        except ClusterError:
            return None

    def _queue(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("nightshift_redis_up", "Whether Redis answers.")
        try:
            with connect(self.settings) as connection:
                found = [_waiting(connection), _workers(connection), _paused(connection)]
        except (redis.RedisError, JobError, ClusterError):
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from found


def serve(settings: Settings, port: int) -> None:
    """Serve the metrics on all addresses of this machine, from a thread, until the process ends.

    Raises:
        Refused: The port is taken, or needs a permission.
    """
    registry = CollectorRegistry()
    registry.register(Metrics(settings))
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        raise Refused(f"port {port} cannot be opened ({error.strerror}); choose another") from error


def _runs(pending: Iterable[RunState]) -> Iterator[Metric]:
    """Count the runs that have not ended; those that have are too many to read at each scrape."""
    counts: Counter[tuple[str, str]] = Counter()
    oldest: dict[str, float] = {}
    for state in pending:
        counts[state.state, state.kind] += 1
        if state.state == "queued":
            age = (datetime.now(UTC) - datetime.fromisoformat(state.changed or state.created)).total_seconds()
            oldest[state.priority] = max(age, oldest.get(state.priority, 0.0))
    runs = GaugeMetricFamily("nightshift_runs", "Runs that have not ended.", labels=["state", "kind"])
    for labels, count in sorted(counts.items()):
        runs.add_metric(labels, count)
    yield runs
    text = "Seconds for which the longest waiting run is queued; 0 if none is."
    waiting = GaugeMetricFamily("nightshift_queue_oldest_waiting_seconds", text, labels=["priority"])
    for priority in PRIORITIES:
        waiting.add_metric([priority], oldest.get(priority, 0.0))
    yield waiting


def _waiting(connection: redis.Redis) -> Metric:
    waiting = GaugeMetricFamily("nightshift_queue_waiting", "Runs in a queue.", labels=["priority"])
    for priority in PRIORITIES:
        waiting.add_metric([priority], len(queues.waiting(connection, priority)))
    return waiting


def _workers(connection: redis.Redis) -> Metric:
    workers = GaugeMetricFamily("nightshift_job_workers", "Job workers that send heartbeats.", labels=["state"])
    counts = Counter(dict.fromkeys(SERVING_STATES, 0))  # a series without job workers too, for alerts
    counts.update(worker.state for worker in serving_workers(connection))
    for state, count in sorted(counts.items()):
        workers.add_metric([state], count)
    return workers


def _paused(connection: redis.Redis) -> Metric:
    paused = GaugeMetricFamily("nightshift_queues_paused", "Whether the queues are paused.")
    paused.add_metric([], int(queues.is_paused(connection)))
    return paused
