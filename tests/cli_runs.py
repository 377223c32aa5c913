"""Runs in a chosen state, and what a terminal shows of them."""

import contextlib
import os
import pty
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.run_view import RunView
from jobs.runs import state as run_state
from jobs.runs.state import RunState
from tests.conftest import Say

LONG_AGO = "2026-01-01T00:00:00.000Z"


PLAIN = ("--weights", "none")


def submitted(say: Say, settings: Settings, shards: str, *options: str) -> RunPaths:
    return RunPaths.of(settings.storage, say("train", shards, *PLAIN, *options)[1].strip())


def set_state(paths: RunPaths, state: run_state.State) -> RunState:
    with run_state.changing(paths) as found:
        return run_state.write_state(paths, found.with_state(state))


def rendered(storage: Path, state: RunState, progress: dict[str, object], width: int = 80) -> list[str]:
    console = Console(file=StringIO(), width=width, force_terminal=False)
    console.print(RunView(storage).updated(state, progress, width))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def on_a_terminal(settings: Settings, *words: str, **environment: str) -> str:
    """Run a command with stdout and stderr on a terminal and return what it printed."""
    reading, writing = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    env |= {"NIGHTSHIFT_STORAGE": str(settings.storage), "NIGHTSHIFT_REDIS_URL": str(settings.redis_url)} | environment
    printed = bytearray()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "jobs", *words], stdout=writing, stderr=writing, env=env
    ) as command:
        os.close(writing)
        with contextlib.suppress(OSError):  # EIO: everything has been read, and the command has ended
            while part := os.read(reading, 65_536):
                printed += part
    os.close(reading)
    assert command.returncode == 0
    return printed.decode()
