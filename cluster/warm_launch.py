"""Starts trainers of this machine as forks of a process that has imported torch and Ray (`cluster/fork_server.py`).

Where the fork server cannot be used, trainers start cold, as new processes (`cluster/launch.py`).
"""

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster import guard
from cluster.code_version import CodeVersion
from cluster.fork_server import READY, AttemptRequest
from cluster.launch import KILL_SECONDS, LocalLauncher, LocalRun, dump_stacks_below
from cluster.process_env import trainer_environment
from cluster.process_title import PADDING, ROOM
from cluster.resources import available_memory
from cluster.run_paths import RunPaths

FORK_SERVER = (sys.executable, "-P", "-m", "trainer.fork_server")  # -P: never import a user's own trainer.py
MIN_MEMORY_BYTES = 4 * 10**9  # the fork server takes 1 GB, and the attempt as much as without it
MAX_RUNS = 100  # then a new one takes over, whatever these have left in it
MAX_FAILURES = 3  # fork servers that end before they are ready; the next would too
ANSWER_SECONDS = 60.0
IMPORT_SECONDS = 300.0  # of a fork server that has just been started: a cold attempt has to import the same
SEND_SECONDS = 10.0
OWN_VARIABLES = ("NIGHTSHIFT_", "RQ_")  # read by each attempt or set for each run, and read by no import

log = logging.getLogger(__name__)


class ForkServer:
    """The fork server of a job worker, which checks it between runs.

    Attributes:
        storage: Its working directory.
        command: Starts it; its job worker, the number of its channel and padding are added.
        process: None if none was started.
        channel: Takes the log and the socket of an attempt.
        why_not: Why there is no fork server.
    """

    def __init__(
        self, storage: Path, command: tuple[str, ...] = FORK_SERVER, *, min_memory_bytes: int = MIN_MEMORY_BYTES
    ) -> None:
        self.storage, self.command, self.min_memory_bytes = storage, command, min_memory_bytes
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.why_not = "no fork server was started"
        self._environment: dict[str, str] = {}
        self._code = CodeVersion()
        self._runs = self._failures = 0

    def __enter__(self) -> "ForkServer":
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process that stays when a run ends."""
        return (self.process.pid,) if self.process is not None and self.process.poll() is None else ()

    @property
    def is_ready(self) -> bool:
        """Whether it has imported everything, or had when it ended."""
        try:
            # The byte stays where it is: the job worker and each work-horse look for it.
            return self.channel is not None and self.channel.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == READY
        except OSError:
            return False

    def count_run(self) -> None:
        """Count a run that was started from it."""
        self._runs += 1

    def refresh(self) -> None:
        """Start it if it does not run, and replace it if its code or its memory may be old; call it between runs."""
        try:
            self._refresh()
        except OSError as error:  # no process, file or memory is left, or the storage does not answer
            self.end()
            self.why_not = f"the fork server cannot be started ({error.strerror})"

    def _refresh(self) -> None:
        code = CodeVersion.of_installation()
        if self.pids and code == self._code and self._runs < MAX_RUNS:
            return
        if self.process is not None:
            if not self.pids:
                log.warning("the fork server has ended")
                self._failures = 0 if self.is_ready else self._failures + 1
            else:
                log.info("the fork server is replaced: %s", "the code has changed" if code != self._code else "its age")
        if code != self._code:
            self._failures = 0
        self.end()
        if self._failures >= MAX_FAILURES:
            self.why_not = "the fork server ended while it started"
        elif (memory := available_memory()) is not None and memory < self.min_memory_bytes:
            self.why_not = (
                f"{memory / 1e9:.1f} GB of memory are available and a fork server is started "
                f"from {self.min_memory_bytes / 1e9:.0f} GB on"
            )
        else:
            self._start()
        self._code = code

    def end(self) -> None:
        """End it. Attempts that it has forked go on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self.channel is not None:
            self.channel.close()
        self.process = self.channel = None
        self.why_not = "the fork server has ended"

    def refusal(self, environment: Mapping[str, str]) -> str | None:
        """Return why an attempt with this environment cannot be forked, None if it can."""
        if self.channel is None:
            return self.why_not
        names = environment.keys() | self._environment.keys()
        other = sorted(
            name
            for name in names
            if environment.get(name) != self._environment.get(name) and not name.startswith(OWN_VARIABLES)
        )
        return f"the fork server has another value of {', '.join(other)}" if other else None

    def _start(self) -> None:
        self._environment = trainer_environment(self.storage, ROOM)
        self.channel, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            self.process = subprocess.Popen(
                (*self.command, str(os.getpid()), str(descriptor), PADDING),
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self.storage,
                env=self._environment,
            )
        self._runs = 0


@dataclass(frozen=True)
class WarmLauncher:
    """Starts trainers as forks of a fork server.

    Attributes:
        fork_server: Of this job worker.
        cold: Starts them where it cannot.
        answer_seconds: How long to wait for the answer of a fork server that has imported everything.
    """

    fork_server: ForkServer
    cold: LocalLauncher = field(default_factory=LocalLauncher)
    answer_seconds: float = ANSWER_SECONDS

    @property
    def place(self) -> str:
        """This machine."""
        return self.cold.place

    def start(self, paths: RunPaths, attempt: int) -> "WarmRun | LocalRun":
        """Start the trainer; its output is appended to the run's log.

        Raises:
            LaunchError: It cannot be started at all.
        """

        def say(text: str) -> None:
            with contextlib.suppress(OSError), paths.log.open("a") as file:  # a full disk fails the attempt itself
                file.write(f"attempt {attempt} {text}\n")

        def start_cold(why: str) -> LocalRun:
            log.warning("%s: attempt %d starts cold: %s", paths.run_id, attempt, why)
            say(f"starts cold, which takes some seconds more: {why}")
            return self.cold.start(paths, attempt)

        request = self.cold.request(paths, attempt)
        if why := self.fork_server.refusal(request.environment):
            return start_cold(why)
        assert self.fork_server.channel is not None  # noqa: S101 -- for the type checker
        ours, theirs = socket.socketpair()
        try:
            with theirs, paths.log.open("ab") as file:
                socket.send_fds(self.fork_server.channel, [b"1"], [file.fileno(), theirs.fileno()], socket.MSG_DONTWAIT)
        except OSError as error:
            ours.close()
            return start_cold(f"the fork server cannot be reached ({error.strerror})")
        seconds = self.answer_seconds
        if not self.fork_server.is_ready:
            seconds = IMPORT_SECONDS
            say("waits until its job worker has imported torch and Ray, once for all its runs")
        return WarmRun(ours, request, start_cold, time.monotonic() + seconds)

    def attach(self, paths: RunPaths, attempt: int) -> LocalRun:
        """Raise `LaunchError`, as trainers on this machine end together with their job worker."""
        return self.cold.attach(paths, attempt)


@dataclass
class WarmRun:
    """A trainer that was asked for at the fork server; it starts cold if no guard answers.

    Attributes:
        connection: To the guard.
        start_cold: Starts it cold, for a reason.
        answer_until: When to start it cold, on the monotonic clock.
        guard_pid: None until the guard has answered.
        code: The exit code.
    """

    connection: socket.socket
    request: AttemptRequest
    start_cold: Callable[[str], LocalRun]
    answer_until: float
    sends_own_heartbeat: bool = False
    guard_pid: int | None = None
    code: int | None = None
    cold: LocalRun | None = None
    _received: bytes = b""

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, 128 + N if signal N ended the trainer, or None while it runs."""
        until = time.monotonic() + seconds
        while self.code is None and self.cold is None:
            now = time.monotonic()
            if self.guard_pid is None and now >= self.answer_until:
                self._give_up("the fork server does not answer")
                break
            if now >= until:
                return None
            end = until if self.guard_pid is not None else min(until, self.answer_until)
            if select.select([self.connection], [], [], end - now)[0]:
                self._receive()
        return self.code if self.cold is None else self.cold.wait(max(0.0, until - time.monotonic()))

    def dump_stacks(self) -> None:
        """Ask each process that listens for it to write its stacks, and give them time to do so."""
        if self.cold is not None:
            self.cold.dump_stacks()
        elif self.guard_pid is not None:
            dump_stacks_below(self.guard_pid)

    def kill(self) -> None:
        """Let the guard kill all its descendants; without a request, it has none."""
        if self.cold is not None:
            self.cold.kill()
        elif self.guard_pid is None:
            self._finish(guard.STATUS_OF_SIGNAL + signal.SIGTERM)
        if self.cold is not None or self.code is not None:
            return
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        if self.wait(KILL_SECONDS) is None and self.guard_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.guard_pid, signal.SIGKILL)
            self.wait(KILL_SECONDS)

    def _receive(self) -> None:
        """Read what the guard says, answer its first line with the request, or notice its end."""
        try:
            data = self.connection.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._end()
        *lines, self._received = (self._received + data).split(b"\n")
        for word, number in (line.split() for line in lines):
            if word == b"exit":
                self._await_guard_end()  # or it would be left for a moment after the attempt has ended
                self._finish(int(number))
                return
            self.guard_pid = int(number)
            self.connection.settimeout(SEND_SECONDS)
            with contextlib.suppress(OSError):  # it has ended
                self.connection.sendall(self.request.to_line())

    def _end(self) -> None:
        """Take note that the guard has ended without an exit code, as a SIGKILL ends it."""
        if self.guard_pid is None:
            self._give_up("the fork server has ended")
            return
        self._await_guard_end()  # its end ends its trainer
        self._finish(guard.STATUS_OF_SIGNAL + signal.SIGKILL)

    def _await_guard_end(self) -> None:
        until = time.monotonic() + KILL_SECONDS
        while self.guard_pid is not None and guard.is_alive(self.guard_pid) and time.monotonic() < until:
            time.sleep(0.001)

    def _finish(self, code: int) -> None:
        self.code = code
        self.connection.close()

    def _give_up(self, why: str) -> None:
        """Start cold; a guard that comes later finds the connection closed."""
        self.connection.close()
        self.cold = self.start_cold(why)
