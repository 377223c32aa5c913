"""Work that one job worker of all does at a time: a thread, and a key in Redis that says whose turn it is."""

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

log = logging.getLogger("nightshift.roles")

TERMS = 3  # a holder that has not asked for so many pauses has lost the role


class LeaderLock:
    """A thread that does `work` every `pause_seconds` while it holds the role, and once more when it is to end."""

    def __init__(
        self, settings: Settings, role: str, holder: str, work: Callable[[redis.Redis], object], pause_seconds: float
    ) -> None:
        """Make ready; entering it as a context starts the thread."""
        self.settings, self.key, self.holder = settings, f"nightshift:role:{role}", holder
        self.work, self.pause_seconds = work, pause_seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._play, name=role, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join(timeout=10)

    def _play(self) -> None:
        connection: redis.Redis | None = None
        is_last = False
        while True:
            try:
                connection = connection or connect(self.settings)
                if self._is_ours(connection):
                    self.work(connection)
            except (redis.RedisError, JobError, ClusterError, OSError) as error:
                log.warning("%s: %s; trying again", self._thread.name, error)
                connection = None
            except Exception:
                log.exception("%s met a bug; trying again", self._thread.name)
            if is_last:
                break
            is_last = self._end.wait(self.pause_seconds)
        if connection is not None:
            self._give_up(connection)

    def _is_ours(self, connection: redis.Redis) -> bool:
        term = int(self.pause_seconds * TERMS * 1000)
        if connection.set(self.key, self.holder, nx=True, px=term):
            return True
        return connection.get(self.key) == self.holder.encode() and bool(connection.pexpire(self.key, term))

    def _give_up(self, connection: redis.Redis) -> None:
        try:
            if connection.get(self.key) == self.holder.encode():
                connection.delete(self.key)
        except redis.RedisError:
            return  # it runs out by itself
        finally:
            connection.close()
