"""A process that is stopped (SIGSTOP) at one of its file operations, and continued later."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from cluster.errors import LeaseLost

CHANGES = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir"})
LEASE_LOST, FAILED = 3, 4
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class StoppedProcess:
    """A fork of this process that runs `work` and is stopped just before its file operation `number`, from 1.

    Only operations that change a file or folder count. `is_stopped` is False if there are fewer.
    """

    def __init__(self, work: Callable[[], object], number: int) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(work, number))
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        self.is_stopped = os.WIFSTOPPED(status)
        self.code = None if self.is_stopped else os.waitstatus_to_exitcode(status)

    def finish(self) -> int:
        """Let it continue to its end and return its exit code."""
        if self.code is None:
            os.kill(self.pid, signal.SIGCONT)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


def _run(work: Callable[[], object], number: int) -> int:
    left = number

    def stop(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(stop)
    try:
        work()
    except LeaseLost:
        return LEASE_LOST
    except BaseException as error:
        sys.__stderr__.write(f"{type(error).__name__}: {error}\n")
        return FAILED
    return 0


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, without those of the attempts."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "attempts" not in path.parts}
