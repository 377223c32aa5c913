"""The first trials of a search wait for each other, until the processes of all slots are up.

Tune hands the process of a trial that has ended to the next trial, even where that one's own process is starting, and
throws that process away. Where trials are shorter than the start of a process there would never be a second one.
"""

import time
from collections.abc import Callable
from pathlib import Path

GATHER_SECONDS = 30.0  # a slot that a busy cluster holds back for longer joins later


def gather(folder: Path, name: str, slots: int, stops: Callable[[], object]) -> None:
    """Wait in `folder` until processes of so many names are there, or `stops` returns a reason."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    until = time.monotonic() + GATHER_SECONDS
    while sum(1 for _ in folder.iterdir()) < slots and time.monotonic() < until and not stops():
        time.sleep(0.02)
