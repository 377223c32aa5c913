"""The three queues of run ids in Redis. Redis carries ids only: which runs must run is written in the run folders."""

import logging
import time
from collections.abc import Iterable
from typing import Any

import rq
from redis import Redis
from rq.exceptions import DequeueTimeout, NoSuchJobError
from rq.serializers import JSONSerializer
from rq.suspension import is_suspended, resume, suspend

from cluster.run_paths import RUN_ID
from jobs.errors import HostileJob
from jobs.queue.entries import RunEntry, fetch_entry, new_entry
from jobs.runs.request import PRIORITIES

log = logging.getLogger("nightshift.queue")

PREFIX = "nightshift-"
WAKE_UP_KEY = "nightshift:bell"  # a list that gets an item at each push: workers of all three queues block on it
WAKE_UP_SECONDS = 5.0  # how long an entry may wait whose wake-up item was taken by another worker
REFUSED = "nightshift:refused"  # the last foreign entries

# Atomic on the server, and safe to repeat when its answer is lost: the id stands in the queue exactly once.
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
    """A queue that several workers can dequeue from without loss, and that refuses foreign entries."""

    @classmethod
    def dequeue_any(  # type: ignore[override]
        cls, queues: Iterable["RunQueue"], timeout: int | None, connection: Redis, **_options: Any
    ) -> tuple[RunEntry, "RunQueue"] | None:
        """Return the first entry of the first queue that has one; wait up to `timeout` seconds for it.

        Each id is moved to its queue's intermediate list, never popped: if this process dies, the id is still there.

        Raises:
            DequeueTimeout: No entry came in time.
        """
        candidates = list(queues)
        until = time.monotonic() + (timeout or 0)
        while True:
            # Checked here and not only between two runs: an idle worker waits below when the queues are paused.
            for queue in [] if is_paused(connection) else candidates:
                if entry := queue.next_entry():
                    return entry, queue
            left = until - time.monotonic()
            if timeout is None:
                return None
            if left <= 0:
                raise DequeueTimeout(timeout, [queue.name for queue in candidates])
            connection.blpop([WAKE_UP_KEY], timeout=max(0.1, min(WAKE_UP_SECONDS, left)))

    def next_entry(self) -> RunEntry | None:
        """Return the queue's first valid entry; foreign entries before it are removed from the queue and logged."""
        while (moved := self.connection.lmove(self.key, self.intermediate_queue_key)) is not None:
            entry_id = text_of(moved)
            try:
                entry = fetch_entry(self.connection, entry_id)
            except (HostileJob, NoSuchJobError, ValueError, UnicodeError) as error:
                if RUN_ID.fullmatch(entry_id) and not self.connection.exists(RunEntry.key_for(entry_id)):
                    # A run that was put here again while it started; its entry was deleted when it ended.
                    self.connection.lrem(self.intermediate_queue_key, 1, moved)  # type: ignore[arg-type]
                else:
                    self._remove_foreign(moved, str(error))
            else:
                return entry
        return None

    def _remove_foreign(self, entry_id: bytes | str, why: str) -> None:
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
    """Put a run into its queue; safe to repeat, the run stands there once."""
    target = queue(connection, priority)
    entry = new_entry(connection, run_id, target.name)
    fields = [part for pair in entry.to_dict().items() for part in pair]
    keys = [target.key, target.intermediate_queue_key, entry.key, WAKE_UP_KEY, rq.Queue.redis_queues_keys]
    connection.eval(_PUSH, len(keys), *keys, run_id, "LPUSH" if at_front else "RPUSH", *fields)


def remove(connection: Redis, run_id: str, priority: str) -> None:
    """Remove a run from its queue; nothing happens if it is not there."""
    target = queue(connection, priority)
    with connection.pipeline() as pipe:
        pipe.lrem(target.key, 0, run_id)
        pipe.delete(RunEntry.key_for(run_id))
        pipe.execute()


def waiting(connection: Redis, priority: str) -> list[str]:
    """Return the ids in a queue, the next one first."""
    return [text_of(item) for item in connection.lrange(queue(connection, priority).key, 0, -1)]


def taken(connection: Redis, priority: str) -> list[str]:
    """Return the ids in a queue's intermediate list: taken by a worker whose work-horse has not started."""
    key = queue(connection, priority).intermediate_queue_key
    return [text_of(item) for item in connection.lrange(key, 0, -1)]


def refused(connection: Redis) -> list[str]:
    """Return the ids of the last foreign entries that were removed, the newest first."""
    return [text_of(item) for item in connection.lrange(REFUSED, 0, -1)]


def pause(connection: Redis) -> None:
    """Let no worker start another run until `unpause`; running runs continue."""
    suspend(connection)


def unpause(connection: Redis) -> None:
    """Let workers start runs again."""
    resume(connection)
    connection.lpush(WAKE_UP_KEY, 1)


def is_paused(connection: Redis) -> bool:
    """Whether the queues are paused."""
    return bool(is_suspended(connection))


def text_of(item: bytes | str) -> str:
    """Return what Redis holds as text, whether or not the connection decodes it."""
    return item.decode(errors="replace") if isinstance(item, bytes) else item


def queue_names() -> list[str]:
    """Return the names of the queues in Redis."""
    return [PREFIX + priority for priority in PRIORITIES]
