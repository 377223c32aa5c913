"""The queues and who serves them."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from redis import Redis, RedisError

from cluster.errors import StorageError
from cluster.settings import Settings
from jobs.errors import JobError
from jobs.queue import queues
from jobs.queue.connection import GLANCE, connect, with_running_redis
from jobs.queue.worker_list import serving_workers
from jobs.runs.request import PRIORITIES

T = TypeVar("T")

SILENT_SECONDS = 30.0  # that a Redis which did not answer is not asked again about the queues


def queue_overview(connection: Redis) -> dict[str, Any]:
    """Return what `queue show --json` prints."""
    serving = [worker.queues for worker in serving_workers(connection)]
    return {
        "paused": queues.is_paused(connection),
        "queues": [
            {
                "priority": priority,
                "waiting": len(queues.waiting(connection, priority)),
                "next": queues.waiting(connection, priority)[:1],
                "workers": sum(priority in served for served in serving),
            }
            for priority in PRIORITIES
        ],
        "refused": queues.refused(connection),
    }


def queue_faults(overview: Mapping[str, Any]) -> list[str]:
    """Return what is wrong in `queue_overview`, in a line each: foreign entries, and `waiting_faults`."""
    refused = overview["refused"]
    entries = "1 foreign entry was" if len(refused) == 1 else f"{len(refused)} foreign entries were"
    foreign = [f"{entries} refused, the last: {refused[0]}"] if refused else []
    return [*foreign, *waiting_faults(overview)]


def waiting_faults(overview: Mapping[str, Any]) -> list[str]:
    """Return why runs of `queue_overview` wait without end, each as "fault; cure"."""
    held = {line["priority"]: line["waiting"] for line in overview["queues"] if line["waiting"]}
    served = {line["priority"] for line in overview["queues"] if line["workers"]}
    paused = f"{_run_waits(sum(held.values()))}, and the queues are paused; open them with `nightshift queue resume`"
    return [paused] * (overview["paused"] and bool(held)) + [
        f"{_run_waits(count)} in the queue {priority}, which no job worker serves; start one with `nightshift worker`, "
        "which serves all queues"
        for priority, count in held.items()
        if priority not in served
    ]


def _run_waits(count: int) -> str:
    return "1 run waits" if count == 1 else f"{count} runs wait"


class QueueCheck:
    """Asks Redis whether the queues are open and served, for what shows runs and works without Redis.

    An embedded Redis is not started for this. A Redis that did not answer is not asked again for `SILENT_SECONDS`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._failed_at = float("-inf")
        self._lock = threading.Lock()  # so that of the threads of a page only one waits for a Redis that is silent

    def are_known_paused(self) -> bool:
        """Whether the queues are paused; False where Redis does not say so."""
        return self._ask(queues.is_paused, False)

    def known_faults(self, priority: str) -> tuple[bool, bool]:
        """Return whether the queues are paused and whether no job worker serves that of a priority, asked at once.

        Both are False where Redis does not say so.
        """

        def found(redis: Redis) -> tuple[bool, bool]:
            return queues.is_paused(redis), not any(priority in worker.queues for worker in serving_workers(redis))

        return self._ask(found, (False, False))

    def _ask(self, question: Callable[[Redis], T], unknown: T) -> T:
        with self._lock:
            if time.monotonic() - self._failed_at < SILENT_SECONDS:
                return unknown
            try:
                with connect(with_running_redis(self.settings, patience_seconds=0), GLANCE) as connection:
                    return question(connection)
            except (JobError, StorageError, RedisError, OSError):
                self._failed_at = time.monotonic()
                return unknown
