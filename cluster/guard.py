"""Keep one process and all its descendants on a leash: when it ends, or whoever started it, all of them end.

Run by its path, not imported, with the standard library alone, so that it starts in milliseconds:
`python -I -S guard.py PARENT_PID COMMAND...`. It ends with the command's exit code, 128 + N when signal N ended it.

Ray's processes start sessions of their own, so a process group does not hold them. The guard is their subreaper
(prctl 36): an orphan below it becomes its child wherever its session is, and a walk over /proc finds them all.
"""

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
GRACE_SECONDS = 2.0  # what Ray's own processes need to leave after their driver has ended in order
STATUS_OF_SIGNAL = 128


def die_with_parent(parent: int, number: int) -> None:
    """Have the kernel send signal `number` when this process' parent dies, and leave if it already has."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(STATUS_OF_SIGNAL + number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants(of: int) -> list[int]:
    """Return the process ids below `of`, zombies left out.

    Children of a process that ends while we walk move to `of`, whose list we have read: so we walk until no other has
    ended than those that were dead when the walk began.
    """
    found, gone = _walk(of)
    while True:
        dead = gone
        found, gone = _walk(of)
        if gone == dead:
            return found


def _walk(of: int) -> tuple[list[int], set[int]]:
    """Return who lives below `of`, and whose end may have kept others from our sight."""
    children_of = _children if Path(f"/proc/{of}/task/{of}/children").exists() else _parents_inverted().__getitem__
    found: list[int] = []
    below = [of]
    while below:
        below = [child for pid in below for child in children_of(pid)]
        found += below
    gone = {pid for pid in found if not _lives(pid)}
    return [pid for pid in found if pid not in gone], gone


def _lives(pid: int) -> bool:
    return _state_and_parent(Path(f"/proc/{pid}/stat"))[0] not in ("Z", "")


def _children(pid: int) -> list[int]:
    """Return the children of a process, from the kernel's own list."""
    found: list[int] = []
    for threads in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in threads.read_text().split()]
        except OSError:
            continue  # it ended while we looked
    return found


def _parents_inverted() -> dict[int, list[int]]:
    """Return the children of every process, for kernels without such lists."""
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
        return "", 0  # it ended while we looked
    return state, int(parent)


def end_descendants(of: int, *, grace_seconds: float, spare: Container[int] = ()) -> int:
    """Ask every process below `of` but those to `spare` to end, kill what does not, and return how many there were."""

    def left_below() -> list[int]:
        return [pid for pid in descendants(of) if pid not in spare]

    first = left_below()
    _signal_all(first, signal.SIGTERM if grace_seconds else signal.SIGKILL)
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
    return len(first)


def reap() -> None:
    """Collect the children that have ended, so that no zombie stays."""
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
    """Return the exit code of `pid`; orphans that end meanwhile are collected on the way."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else STATUS_OF_SIGNAL - code


def main(parent: int, command: list[str]) -> int:
    """Run `command` and return its exit code once nothing of it is left."""

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
