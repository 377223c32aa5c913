"""What Ray on this machine starts instead of Python: it asks a fork server for the process, and lives as long.

This file is run by its path, not imported, and uses only the standard library, so that it starts in milliseconds:
`python -I -S ray_fork_client.py SOCKET PYTHON ARGUMENTS...`. Without an answer it becomes `PYTHON ARGUMENTS...`.
Ray's processes end this one when they want to end the fork, which ends with it; see `ray_fork_server.py`.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys

FORKED = b"1"  # the answer of the fork server; when the fork has ended, its wait status follows
STREAMS = (0, 1, 2)
PARENT_SECONDS = 1.0  # how often to look whether the process that started this one lives


def main(address: str, python: str, arguments: list[str]) -> None:
    """Have a process forked, and end as it ends; become that process if there is no fork."""
    status = status_of_fork(address, arguments)
    if status is None:
        os.execv(python, [python, *arguments])  # noqa: S606
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), -code)
    os._exit(code)


def status_of_fork(address: str, arguments: list[str]) -> int | None:
    """Return the wait status of a fork that has ended, None if there was no fork."""
    parent = os.getppid()
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(address)
            line = json.dumps(_request(arguments)).encode() + b"\n"
            socket.send_fds(server, [line[:1]], STREAMS)
            server.sendall(line[1:])
            if server.recv(1) != FORKED:
                return None
            server.settimeout(PARENT_SECONDS)
            while True:
                with contextlib.suppress(TimeoutError):
                    return int(server.recv(16) or signal.SIGKILL)  # without an answer, the fork server has ended
                if os.getppid() != parent:
                    return signal.SIGKILL  # which the fork server does to the fork when this process has ended
    except OSError:
        return None


def _request(arguments: list[str]) -> dict[str, object]:
    """Return what the fork takes over from this process."""
    return {
        "arguments": arguments,
        "folder": os.getcwd(),  # noqa: PTH109 -- pathlib takes long to import
        "environment": dict(os.environ),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score": _oom_score(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }


def _oom_score() -> str:
    """Return how soon the kernel ends this process when memory is short; Ray sets it for its workers."""
    with open("/proc/self/oom_score_adj") as score:  # noqa: PTH123 -- pathlib takes long to import
        return score.read().strip()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
