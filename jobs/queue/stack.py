"""The embedded stack: Redis and job workers as child processes that end with their parent."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from cluster import guard
from cluster.errors import ClusterError, StorageAway
from cluster.process_env import job_worker_environment
from cluster.settings import Settings
from cluster.storage_marker import refuse_away
from jobs.errors import JobError, StackError
from jobs.queue import embedded_redis
from jobs.queue.connection import connect
from jobs.queue.storage_check import ready_storage

log = logging.getLogger("nightshift.stack")

WORKER = (sys.executable, "-P", "-m", "jobs", "worker")  # -P: never import a user's own jobs.py
STOP_SECONDS = 150.0  # longer than a job worker's own drain
MAX_DEATHS = 3  # of one job worker within `DEATHS_SECONDS`
DEATHS_SECONDS = 60.0
REDIS_PAUSE_SECONDS = 5.0  # between two tries to start Redis again


@dataclass
class Stack:
    """A running stack.

    Attributes:
        settings: The settings with the address of its Redis.
        workers: Its job workers.
        server: Its embedded Redis; None if an address is set.
    """

    settings: Settings
    output: TextIO | None
    command: tuple[str, ...]
    workers: "list[subprocess.Popen[bytes]]"
    server: embedded_redis.EmbeddedRedis | None = None
    _deaths: "dict[int, list[float]]" = field(default_factory=dict)
    _redis_fault: str | None = None  # the last warning, so that it is logged once
    _redis_tries: int = 0  # in a row that failed
    _next_redis_try: float = float("-inf")  # a time of the monotonic clock

    def add_worker(self) -> None:
        """Start one more job worker."""
        self.workers.append(_start_worker(self.settings, len(self.workers) + 1, self.output, self.command))

    def restart_ended(self, redis_tries: float = float("inf")) -> None:
        """Restart the embedded Redis and each job worker that has ended by itself; call it repeatedly.

        While the storage is away nothing is started: the files of the embedded Redis may be on it. A Redis that cannot
        be started again, such as on a full disk, is tried again by a call a few seconds later; no job worker is started
        without it.

        Args:
            redis_tries: After how many failed tries in a row to start Redis to give up.

        Raises:
            StackError: A job worker ended for the third time within a minute, so another start would not help; or Redis
                cannot be started.
        """
        try:
            refuse_away(self.settings.runs)
        except StorageAway:
            return
        if self.server is not None and not self.server.is_alive:
            self._restart_redis(self.server, redis_tries)
            if not self.server.is_alive:
                return
        for place, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self._count_death(place, worker.returncode)
                self.workers[place] = _start_worker(self.settings, place + 1, self.output, self.command)

    def _restart_redis(self, ended: embedded_redis.EmbeddedRedis, most_tries: float) -> None:
        """Start the embedded Redis again, at its old address; say once why it does not start."""
        if time.monotonic() < self._next_redis_try:
            return
        try:
            self.server = embedded_redis.ensure_running(self.settings.storage, ends_with_caller=True)
        except (OSError, ClusterError, JobError) as error:
            why = (isinstance(error, OSError) and error.strerror) or str(error)
            self._redis_tries += 1
            self._next_redis_try = time.monotonic() + REDIS_PAUSE_SECONDS
            if self._redis_tries >= most_tries:
                raise StackError(
                    f"Redis (process {ended.pid}) has ended and cannot be started again: {why}; "
                    "`nightshift doctor` checks this machine"
                ) from error
            if self._redis_fault != why:
                log.warning(
                    "Redis (process %d) has ended and cannot be started again: %s; trying again", ended.pid, why
                )
            self._redis_fault = why
        else:
            self._redis_fault, self._redis_tries = None, 0

    def _count_death(self, place: int, exit_code: int) -> None:
        if exit_code in (-signal.SIGKILL, -signal.SIGTERM):
            return  # something else ended it
        now = time.monotonic()
        recent = [death for death in self._deaths.get(place, []) if now - death < DEATHS_SECONDS]
        self._deaths[place] = [*recent, now]
        if len(self._deaths[place]) >= MAX_DEATHS:
            output = "its output is above" if self.output else f"see {log_file(self.settings.storage, place + 1)}"
            raise StackError(
                f"job worker {place + 1} ended {MAX_DEATHS} times within a minute, last with exit code {exit_code}; "
                f"{output}; `nightshift doctor` checks this machine"
            )


@contextmanager
def start_stack(
    settings: Settings,
    job_workers: int = 1,
    *,
    output: TextIO | None = None,
    worker_command: tuple[str, ...] = WORKER,
) -> Iterator[Stack]:
    """Run the embedded Redis (unless an address is set) and job workers while the context is open.

    Several stacks can use one storage; its embedded Redis, and one that a command started and left running, ends with
    the last of them.

    Args:
        settings: The storage, and the address of a Redis to use instead of the embedded one.
        job_workers: How many runs may run at a time.
        output: Where the workers' output goes; by default files under `STORAGE/logs`.
        worker_command: The command of each job worker.

    Raises:
        StorageError: The folder is not the storage of the queue, or it cannot be written. Nothing was started.
        QueueUnreachable: The Redis of the address does not answer.
    """
    if settings.redis_url:
        ready_storage(settings, connect(settings))
    else:
        settings.with_storage_ready()
    redis = nullcontext() if settings.redis_url else embedded_redis.used_by_stack(settings.storage)
    with redis as server:
        here = replace(settings, redis_url=server.url) if server else settings
        stack = Stack(here, output, worker_command, [], server)
        try:
            for _ in range(job_workers):
                stack.add_worker()
            yield stack
        finally:
            _stop_workers(stack.workers)


def _start_worker(
    settings: Settings, number: int, output: TextIO | None, command: tuple[str, ...]
) -> "subprocess.Popen[bytes]":
    path = log_file(settings.storage, number)
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        return start_child(command, settings, stdout=output or file, stderr=subprocess.STDOUT)


def start_child(command: Sequence[str], settings: Settings, **streams: Any) -> "subprocess.Popen[bytes]":
    """Start a process that uses the same storage and Redis and gets SIGTERM when this process ends.

    Args:
        command: The command.
        settings: The storage and the address of Redis.
        streams: `stdout` and `stderr` of `subprocess.Popen`; by default those of this process.
    """
    starter = os.getpid()
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches this process only, which then stops its children in order
        preexec_fn=lambda: guard.die_with_parent(starter, signal.SIGTERM),  # noqa: PLW1509, no thread runs yet
        env=job_worker_environment(settings),
        **streams,
    )


def log_file(storage: Path, number: int) -> Path:
    """Return the file with the output of a job worker."""
    return storage / "logs" / f"worker-{number}.log"


def _stop_workers(workers: "list[subprocess.Popen[bytes]]") -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    until = time.monotonic() + STOP_SECONDS
    for worker in workers:
        try:
            worker.wait(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
