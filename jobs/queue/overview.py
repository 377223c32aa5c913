"""The queues and who serves them."""

from typing import Any

from redis import Redis

from jobs.queue import queues
from jobs.queue.worker_list import live_workers
from jobs.runs.request import PRIORITIES


def queue_overview(connection: Redis) -> dict[str, Any]:
    """Return what `queue show --json` prints."""
    serving = [worker.queues for worker in live_workers(connection)]
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
