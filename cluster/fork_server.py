"""The fork server: a process that has imported what a trainer needs, and forks one for each attempt.

A job worker keeps it for many runs (`cluster/warm_launch.py`). An attempt has the same fences as one that starts cold:

    job worker
    ├── fork server
    ├── work-horse ── socket ──┐
    └── guard of the attempt ──┘      what `guard.py` is for a cold attempt, and in a session of its own
        └── trainer                   with the processes that it starts

For an attempt, the work-horse sends the fork server two files: the log, and one end of a socket. The fork server never
reads from that socket; the guard does. Lines of text go through it: "guard PID" from the guard, then the request as
JSON from the work-horse, then "exit CODE" from the guard. When the work-horse closes its end, or ends, or the job
worker ends, the guard kills the attempt. Without a request nothing was started, so the work-horse can start cold.

A request does not say what to run: a fork server has one function, and a request only its arguments.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from types import FrameType
from typing import NoReturn, TypeAlias

from cluster import guard
from cluster.exit_codes import ExitCode
from cluster.process_env import environment_of_process, replace_environment
from cluster.process_exit import end_process
from cluster.process_title import show_command, show_variable

READY = b"1"  # what the fork server sends when it has imported everything
FILES = 2  # of an attempt: its log and its socket
THREAD_SECONDS = 1.0  # until the kernel no longer lists a thread that has ended
GIVEN_UP = guard.STATUS_OF_SIGNAL + signal.SIGTERM  # exit code of a guard that has nothing to guard

Main: TypeAlias = Callable[[list[str]], int]


@dataclass(frozen=True, kw_only=True)
class AttemptRequest:
    """What a work-horse asks for.

    Attributes:
        arguments: Of the function.
        command: The command line that would start the same attempt cold, which `ps` shows.
        folder: The working directory.
        environment: All environment variables.
        run_id: The run, in `NIGHTSHIFT_RUN`.
    """

    arguments: list[str]
    command: list[str]
    folder: str
    environment: dict[str, str]
    run_id: str

    def to_line(self) -> bytes:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


def run_fork_server(preload: Callable[[], str | None], main: Main) -> int:
    """Run this process, whose arguments are the job worker's pid and the number of the channel, as a fork server.

    Args:
        preload: Imports what an attempt needs; returns why this process must not fork attempts, or None. Environment
            variables that an import sets are set in attempts too, as they are when an attempt imports it itself.
        main: Runs an attempt and returns its exit code.

    Returns:
        The exit code. The trainer of an attempt, a fork of this process, ends in this function.
    """
    worker, descriptor = int(sys.argv[1]), int(sys.argv[2])
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    guard.die_with_parent(worker, signal.SIGKILL)
    show_command(sys.orig_argv[:-1])  # without the padding
    before = environment_of_process()
    if fault := preload() or fault_of_forks():
        print(f"attempts start cold: {fault}", file=sys.stderr, flush=True)  # noqa: T201
        return 1
    imported = {name: value for name, value in environment_of_process().items() if before.get(name) != value}
    gc.collect()
    gc.freeze()  # the collector of a fork does not touch, and so not copy, what is shared
    sys.stdout.flush()  # or each fork writes it again
    channel.send(READY)
    return _serve(channel, worker, imported, main)


def fault_of_forks() -> str | None:
    """Return why a fork of this process would be unsafe, or None.

    A lock that another thread holds stays locked in the fork for ever.
    OpenBLAS has threads as soon as it is loaded; it ends them before each fork and starts them again when it computes.
    So the threads are counted after a fork without any use.
    """
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    until = time.monotonic() + THREAD_SECONDS
    while (count := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < until:  # noqa: PTH208 -- a number
        time.sleep(0.01)
    return None if count == 1 else f"{count - 1} threads of libraries run, beside which a fork is not safe"


def _serve(channel: socket.socket, worker: int, imported: Mapping[str, str], main: Main) -> int:
    while True:
        try:
            message, files, _, _ = socket.recv_fds(channel, 1, FILES)
        except ConnectionError:
            return 0  # the job worker has ended
        if not message:
            return 0
        if len(files) == FILES and _fork() == 0:
            channel.close()
            request = _as_trainer(files[0], files[1], worker, imported)
            try:
                return end_process(main(request.arguments))
            finally:  # after an exception
                gc.unfreeze()  # Python collects everything at its end, and libraries report what is left
        for file in files:
            os.close(file)  # a work-horse whose attempt was not forked sees the end of its socket


def _fork() -> int | None:
    """Fork; return 0 in the fork, and its pid here when it has ended, which it does at once; None if it failed."""
    try:
        pid = os.fork()
    except OSError:  # no memory or no more processes
        return None
    if pid:
        os.waitpid(pid, 0)
    return pid


def _as_trainer(log: int, descriptor: int, worker: int, imported: Mapping[str, str]) -> AttemptRequest:
    """Become the guard of an attempt, and return the request in its trainer alone."""
    work_horse = socket.socket(fileno=descriptor)
    _become_child_of(worker)
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        line = _answer(work_horse)
        if not line.endswith(b"\n"):
            os._exit(GIVEN_UP)  # the work-horse has ended, or does without this attempt
        request = AttemptRequest(**json.loads(line))
        os.chdir(request.folder)
        replace_environment({**request.environment, **imported})
        show_variable("NIGHTSHIFT_RUN", request.run_id)
        _guard_trainer(request, work_horse)
        return request
    except Exception:
        traceback.print_exc()
        _leave(ExitCode.UNKNOWN, work_horse)


def _answer(work_horse: socket.socket) -> bytes:
    """Tell the work-horse who guards the attempt, and return the request; without a newline at its end, it is none."""
    try:
        work_horse.sendall(f"guard {os.getpid()}\n".encode())
        with work_horse.makefile("rb") as lines:
            return lines.readline()
    except ConnectionError:
        return b""


def _guard_trainer(request: AttemptRequest, work_horse: socket.socket) -> None:
    """Fork the trainer, and guard it until all its descendants have ended; return in the trainer alone."""
    stop = partial(_stop, work_horse)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    guard.adopt_orphans()
    own = os.getpid()
    trainer = os.fork()
    if trainer == 0:
        guard.die_with_parent(own, signal.SIGKILL)
        work_horse.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        show_command(request.command)
        return
    show_command([sys.executable, "-I", "-S", guard.__file__, str(os.getppid()), *request.command])
    code = _wait_for(trainer, work_horse, stop)
    guard.end_descendants(own, grace_seconds=guard.GRACE_SECONDS)
    _leave(code, work_horse)


def _become_child_of(worker: int) -> None:
    """Leave the fork server, so that its end does not end the attempt, and end with the job worker instead.

    The job worker adopts orphans below it: this process becomes its child as soon as its parent ends.
    """
    parent = os.getpid()
    try:
        if os.fork():
            os._exit(0)
    except OSError:  # no memory or no more processes
        os._exit(1)
    while os.getppid() == parent:
        time.sleep(0.001)
    guard.die_with_parent(worker, signal.SIGTERM)


def _wait_for(trainer: int, work_horse: socket.socket, stop: Callable[[int, None], NoReturn]) -> int:
    """Return the exit code of the trainer; reap orphans that end before it, and stop when the work-horse ends."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler, a signal wakes nobody
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == trainer:
            return guard.exit_code_of(status)
        if ended:
            continue
        readable, _, _ = select.select([woken, work_horse.fileno()], [], [])
        if work_horse.fileno() in readable:  # it sends nothing more: this is its end
            stop(signal.SIGTERM, None)
        os.read(woken, 4096)


def _stop(work_horse: socket.socket, number: int, _frame: FrameType | None) -> NoReturn:
    guard.end_descendants(os.getpid(), grace_seconds=0)
    _leave(guard.STATUS_OF_SIGNAL + number, work_horse)


def _leave(code: int, work_horse: socket.socket) -> NoReturn:
    """End the guard at once: the exit handlers of the imported libraries are for the trainer."""
    with contextlib.suppress(OSError):  # the work-horse has ended
        work_horse.sendall(f"exit {code:d}\n".encode())
    os._exit(code)
