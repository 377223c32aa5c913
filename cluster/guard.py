"""Run a command and kill all its descendants when it ends, or when the process that started this one ends.

This file is run by its path, not imported, and uses only the standard library, so that it starts in milliseconds:
`python -I -S guard.py PARENT_PID COMMAND...`. It exits with the command's exit code, or 128 + N if signal N ended it.

Ray's processes start their own sessions, so killing a process group does not reach them. The guard is their
subreaper (prctl PR_SET_CHILD_SUBREAPER): the kernel makes orphaned descendants its children, and /proc lists them.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Container
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 2.0  # the time that Ray's processes need to exit after a normal end of their driver
STATUS_OF_SIGNAL = 128


def die_with_parent(parent: int, number: int) -> None:
    """Ask the kernel to send signal `number` when the parent of this process dies; exit if it already has."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(STATUS_OF_SIGNAL + number)


def adopt_orphans() -> None:
    """Become the subreaper: the new parent of every descendant whose parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants(of: int) -> list[int]:
    """Return the ids of all descendants of process `of` except zombies.

    When a process ends during the walk, its children move to `of`, whose list was already read. So the walk is
    repeated until no process ended during it.
    """
    found, gone = _walk(of)
    while True:
        dead = gone
        found, gone = _walk(of)
        if gone == dead:
            return found


def _walk(of: int) -> tuple[list[int], set[int]]:
    """Return the living descendants of `of`, and those that ended, whose children this walk may have missed."""
    children_of = _children if Path(f"/proc/{of}/task/{of}/children").exists() else _parents_inverted().__getitem__
    found: list[int] = []
    below = [of]
    while below:
        below = [child for pid in below for child in children_of(pid)]
        found += below
    gone = {pid for pid in found if not is_alive(pid)}
    return [pid for pid in found if pid not in gone], gone


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return _state_and_parent(Path(f"/proc/{pid}/stat"))[0] not in ("Z", "")


def _children(pid: int) -> list[int]:
    """Return the children of a process from the kernel's list in /proc."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 -- reads the whole folder at once
            with contextlib.suppress(OSError):  # the thread ended in between
                found += [int(child) for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    except OSError:
        pass  # the process ended in between
    return found


def _parents_inverted() -> dict[int, list[int]]:
    """Return the children of every process, for kernels that have no list of children."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*/stat"):
        state, parent = _state_and_parent(entry)
        if state:
            children[parent].append(int(entry.parent.name))
    return children


def _state_and_parent(stat: Path) -> tuple[str, int]:
    try:
        state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
    except OSError:
        return "", 0  # the process ended in between
    return state, int(parent)


def end_descendants(of: int, *, grace_seconds: float, spare: Container[int] = ()) -> None:
    """Terminate all descendants of `of` except `spare`, and kill those that remain."""

    def left_below() -> list[int]:
        return [pid for pid in descendants(of) if pid not in spare]

    _signal_all(left_below(), signal.SIGTERM if grace_seconds else signal.SIGKILL)
    until = time.monotonic() + grace_seconds
    while (left := left_below()) and time.monotonic() < until:
        reap()
        time.sleep(0.02)
    while left:
        _signal_all(left, signal.SIGKILL)
        reap()
        time.sleep(0.01)
        left = left_below()
    reap()


def reap() -> None:
    """Wait for the children that have ended, so that no zombies remain."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _start(command: list[str]) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent(guard, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606, our own command, as a list
    except OSError as error:
        print(f"{command[0]} cannot be started: {error}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(127)


def _wait_for(pid: int) -> int:
    """Return the exit code of `pid`, and reap orphans that end before it."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return exit_code_of(status)


def exit_code_of(status: int) -> int:
    """Return the exit code of a process that ended with a wait status, 128 + N if signal N ended it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else STATUS_OF_SIGNAL - code


def main(parent: int, command: list[str]) -> int:
    """Run `command` and return its exit code when all its descendants have ended."""

    def stop(number: int, _frame: FrameType | None) -> None:
        end_descendants(os.getpid(), grace_seconds=0)
        os._exit(STATUS_OF_SIGNAL + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    adopt_orphans()
    die_with_parent(parent, signal.SIGTERM)
    code = _wait_for(_start(command))
    end_descendants(os.getpid(), grace_seconds=GRACE_SECONDS)
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
