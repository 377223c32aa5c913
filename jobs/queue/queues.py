"""The three queues of run ids in Redis. Redis only carries: what is owed is written in the run folders."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import rq
from redis import Redis
from rq.exceptions import DequeueTimeout, NoSuchJobError
from rq.serializers import JSONSerializer
from rq.suspension import is_suspended, resume, suspend

from jobs.errors import HostileJob
from jobs.queue.entries import RunEntry, fetch_entry, new_entry
from jobs.runs.request import PRIORITIES

log = logging.getLogger("nightshift.queue")

PREFIX = "nightshift-"
WAKE_UP_KEY = (
    "nightshift:bell"  # rung at each push: a worker that listens to three queues wakes without asking in a loop
)
WAKE_UP_SECONDS = 5.0  # how long a push that nobody rang for may wait
REFUSED = "nightshift:refused"  # the last entries that were none of ours

# One step for the server, safe to repeat when its answer is lost: the id stands in the queue once, wherever it stood.
_PUSH = """
redis.call('LREM', KEYS[1], 0, ARGV[1])
redis.call('LREM', KEYS[2], 0, ARGV[1])
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], unpack(ARGV, 3))
redis.call('SADD', KEYS[5], KEYS[1])
redis.call(ARGV[2], KEYS[1], ARGV[1])
redis.call('LPUSH', KEYS[4], 1)
redis.call('LTRIM', KEYS[4], 0, 63)
return 1
"""


class RunQueue(rq.Queue):
    """A queue whose dequeue is safe on several queues at once and lets no foreign entry through."""

    @classmethod
    def dequeue_any(  # type: ignore[override]
        cls, queues: Iterable["RunQueue"], timeout: int | None, connection: Redis, **_options: Any
    ) -> tuple[RunEntry, "RunQueue"] | None:
        """Return the first entry of the first queue that has one; wait up to `timeout` seconds for it.

        Each id is moved to its queue's intermediate list, never popped: if this process dies, it is still there.

        Raises:
            DequeueTimeout: None came.
        """
        wanted = list(queues)
        until = time.monotonic() + (timeout or 0)
        while True:
            # Looked at here and not only between two runs: an idle worker waits below when the queues are paused.
            for queue in [] if is_paused(connection) else wanted:
                if entry := queue.next_entry():
                    return entry, queue
            left = until - time.monotonic()
            if timeout is None:
                return None
            if left <= 0:
                raise DequeueTimeout(timeout, [queue.name for queue in wanted])
            connection.blpop([WAKE_UP_KEY], timeout=max(0.1, min(WAKE_UP_SECONDS, left)))

    def next_entry(self) -> RunEntry | None:
        """Return the queue's first entry of ours; foreign ones on the way are put aside and logged."""
        while (moved := self.connection.lmove(self.key, self.intermediate_queue_key)) is not None:
            entry_id = _text(moved)
            try:
                entry = fetch_entry(self.connection, entry_id)
            except (HostileJob, NoSuchJobError, ValueError, UnicodeError) as error:
                self._put_aside(moved, str(error))
            else:
                return entry
        return None

    def _put_aside(self, entry_id: bytes | str, why: str) -> None:
        log.warning("refused an entry of %s: %s", self.name, why)
        with self.connection.pipeline() as pipe:
            pipe.lrem(self.intermediate_queue_key, 1, entry_id)  # type: ignore[arg-type]
            pipe.lpush(REFUSED, entry_id)
            pipe.ltrim(REFUSED, 0, 99)
            pipe.execute()


def queue(connection: Redis, priority: str) -> RunQueue:
    """Return the queue of a priority class."""
    return RunQueue(
        PREFIX + priority,
        connection=connection,
        serializer=JSONSerializer,
        job_class=RunEntry,
        default_timeout=-1,
    )


def enqueue(connection: Redis, run_id: str, priority: str, *, at_front: bool = False) -> None:
    """Put a run into its queue; safe to repeat, it stands there once."""
    target, entry = queue(connection, priority), new_entry(connection, run_id)
    entry.origin, entry._status = target.name, rq.job.JobStatus.QUEUED
    fields = [part for pair in entry.to_dict().items() for part in pair]
    keys = [target.key, target.intermediate_queue_key, entry.key, WAKE_UP_KEY, rq.Queue.redis_queues_keys]
    connection.eval(_PUSH, len(keys), *keys, run_id, "LPUSH" if at_front else "RPUSH", *fields)


def remove(connection: Redis, run_id: str, priority: str) -> None:
    """Take a run out of its queue; nothing happens if it is not there."""
    target = queue(connection, priority)
    with connection.pipeline() as pipe:
        pipe.lrem(target.key, 0, run_id)
        pipe.delete(RunEntry.key_for(run_id))
        pipe.execute()


def waiting(connection: Redis, priority: str) -> list[str]:
    """Return the ids in a queue, the next one first."""
    return [_text(item) for item in connection.lrange(queue(connection, priority).key, 0, -1)]


def taken(connection: Redis, priority: str) -> list[str]:
    """Return the ids that a worker has taken and not begun."""
    key = queue(connection, priority).intermediate_queue_key
    return [_text(item) for item in connection.lrange(key, 0, -1)]


def refused(connection: Redis) -> list[str]:
    """Return the ids of the last foreign entries that were put aside, the newest first."""
    return [_text(item) for item in connection.lrange(REFUSED, 0, -1)]


def pause(connection: Redis) -> None:
    """Let no worker take another run until `unpause`; runs that run go on."""
    suspend(connection)


def unpause(connection: Redis) -> None:
    """Let workers take runs again."""
    resume(connection)
    connection.lpush(WAKE_UP_KEY, 1)


def is_paused(connection: Redis) -> bool:
    """Whether workers take no runs at present."""
    return bool(is_suspended(connection))


def _text(item: bytes | str) -> str:
    return item.decode(errors="replace") if isinstance(item, bytes) else item


def queue_names(priorities: Sequence[str] = PRIORITIES) -> list[str]:
    """Return the names of the queues in Redis."""
    return [PREFIX + priority for priority in priorities]
