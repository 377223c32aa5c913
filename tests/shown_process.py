"""A trainer for tests that writes what a process is given: `python -m tests.shown_process RUN_FOLDER --attempt N`."""

import ctypes
import os
import random
import resource
import signal
import sys
import threading
from pathlib import Path

from cluster.files import write_json

PR_GET_PDEATHSIG = 2
LIMITS = [name for name in dir(resource) if name.startswith("RLIMIT_")]
LEFT: list[str] = []  # what the attempts of this process have left
OWN = ("NIGHTSHIFT_RUN", "SET_BY_AN_IMPORT", "RQ_JOB_ID")


def main(folder: str, attempt: int) -> int:
    fate = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(fate))
    umask = os.umask(0)
    os.umask(umask)
    command = Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
    shown = Path("/proc/self/environ").read_bytes().decode().split("\0")
    write_json(
        Path(folder) / "shown.json",
        {
            "folder": str(Path.cwd()),
            "umask": umask,
            "environment": {name: value for name, value in os.environ.items() if name not in OWN},
            "set by an import": os.environ.get("SET_BY_AN_IMPORT"),
            "shown run": [line for line in shown if line.startswith("NIGHTSHIFT_RUN=")],
            "run": os.environ["NIGHTSHIFT_RUN"],
            "command": command[-7:],
            "streams": [str(Path(f"/proc/self/fd/{stream}").readlink()) for stream in range(3)],
            "files": len(list(Path("/proc/self/fd").iterdir())),
            "modules left": LEFT,
            "random": random.random(),
            "path": sys.path,
            "signals": {number.name: str(signal.getsignal(number)) for number in signal.Signals},
            "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "wakeup": signal.set_wakeup_fd(-1),
            "limits": {name: resource.getrlimit(getattr(resource, name)) for name in LIMITS},
            "nice": os.nice(0),
            "cpus": sorted(os.sched_getaffinity(0)),
            "death signal": fate.value,
            "threads": threading.active_count(),
            "leader": os.getsid(0) == os.getppid() == os.getpgid(0),
            "terminals": [os.isatty(stream) for stream in range(3)],
        },
    )  # fmt: skip
    LEFT.append(folder)
    os.environ["LEFT"] = folder
    os.umask(0o077)
    os.chdir("/")
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[3])))
