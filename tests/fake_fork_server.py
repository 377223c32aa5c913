"""A fork server for tests: `python -m tests.fake_fork_server [--fails] MODULE WORKER CHANNEL PADDING`.

Its attempts are those of a fake trainer, which starts in milliseconds.
"""

import importlib
import os
import random
import sys
import threading
import time
from pathlib import Path

from cluster.fork_server import run_fork_server
from cluster.launch import LocalLauncher
from cluster.warm_launch import ForkServer, WarmLauncher

ROOT = Path(__file__).parent.parent


def fork_server(storage: Path, trainer: str, *options: str, **limits: int) -> ForkServer:
    """Return a fork server of a job worker, whose attempts call the function `main` of a module."""
    command = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-P", "-m", "tests.fake_fork_server", *options, trainer)
    return ForkServer(storage, command, **limits)


def launcher(server: ForkServer, trainer: str) -> WarmLauncher:
    return WarmLauncher(server, LocalLauncher((sys.executable, "-P", "-m", trainer)))


def preload() -> str | None:
    os.environ["SET_BY_AN_IMPORT"] = "1"
    random.seed(7)
    if "--uses-threads" in OPTIONS:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return "it was told to fail" if "--fails" in OPTIONS else None


def attempt(arguments: list[str]) -> int:
    return int(module.main(arguments[0], int(arguments[2])))


if __name__ == "__main__":
    *OPTIONS, trainer = sys.argv[1:-3]
    module = importlib.import_module(trainer)
    sys.argv[1:] = sys.argv[-3:]
    sys.exit(run_fork_server(preload, attempt))
