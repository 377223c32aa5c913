"""Work that only one job worker at a time does: a thread, and a key in Redis that holds the lock for it."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import redis

from cluster.errors import ClusterError
from cluster.settings import Settings
from jobs.errors import JobError
from jobs.queue.connection import connect

log = logging.getLogger("nightshift.leader_lock")

LOCK_PAUSES = 3  # the lock expires after this many pauses without a renewal


class LeaderLock:
    """A thread that calls `work` every `pause_seconds` while it holds the lock, and once more before it ends."""

    def __init__(
        self, settings: Settings, role: str, holder: str, work: Callable[[redis.Redis], object], pause_seconds: float
    ) -> None:
        """Prepare the thread; entering the context starts it."""
        self.settings, self.key, self.holder = settings, f"nightshift:role:{role}", holder
        self.work, self.pause_seconds = work, pause_seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=role, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        connection: redis.Redis | None = None
        is_last = False
        while True:
            try:
                connection = connection or connect(self.settings)
                if self._acquire(connection):
                    self.work(connection)
            except (redis.RedisError, JobError, ClusterError, OSError) as error:
                log.warning("%s: %s; trying again", self._thread.name, error)
                connection = None
            except Exception:
                log.exception("%s failed unexpectedly; trying again", self._thread.name)
            if is_last:
                break
            is_last = self._end.wait(self.pause_seconds)
        if connection is not None:
            self._release(connection)

    def _acquire(self, connection: redis.Redis) -> bool:
        """Acquire or renew the lock; return whether this process holds it."""
        lock_milliseconds = int(self.pause_seconds * LOCK_PAUSES * 1000)
        if connection.set(self.key, self.holder, nx=True, px=lock_milliseconds):
            return True
        return connection.get(self.key) == self.holder.encode() and bool(
            connection.pexpire(self.key, lock_milliseconds)
        )

    def _release(self, connection: redis.Redis) -> None:
        try:
            if connection.get(self.key) == self.holder.encode():
                connection.delete(self.key)
        except redis.RedisError:
            return  # the key expires by itself
        finally:
            connection.close()
