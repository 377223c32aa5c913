"""A process that a command starts and waits for: it ends with the command, whatever ends the command.

It is for work that needs torch or scikit-learn, which the command line does not import.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from cluster import guard
from cluster.process_env import torch_environment

GRACE_SECONDS = 2.0  # the time that a process that is asked to end needs to remove its drafts


@contextmanager
def guarded_process(
    command: Sequence[str], request: Mapping[str, Any], *, stdout: int | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Start a process under the guard, tell it `request` as a line of JSON on stdin, and end it after the block.

    Ctrl-C, SIGTERM and SIGHUP leave the block, so the process is asked to end (SIGTERM) and can remove its drafts; what
    remains is killed. If this process is killed, the guard kills the process.

    Args:
        command: The command.
        request: What to do, as JSON values.
        stdout: As for `subprocess.Popen`.

    Yields:
        The guard, which has the exit code of the process.
    """
    guarded = (sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *command)
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, _leave))
        # In a session of its own: Ctrl-C reaches this command alone, which then ends the process.
        process = stack.enter_context(
            subprocess.Popen(
                guarded,
                stdin=subprocess.PIPE,
                stdout=stdout,
                text=True,
                start_new_session=True,
                env=torch_environment(),
            )
        )
        stack.callback(_end, process)
        _tell(process, request)
        yield process


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(guard.STATUS_OF_SIGNAL + number)


def _tell(process: "subprocess.Popen[str]", request: Mapping[str, Any]) -> None:
    assert process.stdin is not None  # noqa: S101 -- for the type checker
    with suppress(BrokenPipeError), process.stdin as stdin:  # it has ended already; its exit code says why
        stdin.write(json.dumps(request) + "\n")


def _end(process: "subprocess.Popen[str]") -> None:
    """Ask what runs below the guard to end, then let the guard kill what remains."""
    if process.poll() is not None:
        return
    for pid in guard.descendants(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE_SECONDS)
    process.terminate()
