"""A run's log, from storage: the end of it, and what is added while it runs."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_SECONDS = 0.3
BLOCK_BYTES = 65_536
NEWLINE = 0x0A


def tail(path: Path, lines: int | None) -> tuple[str, int]:
    """Return the last `lines` lines (None: all) and the position in bytes behind them; an absent log is empty."""
    if not path.exists():
        return "", 0
    with path.open("rb") as file:
        end = file.seek(0, 2)
        start = 0 if lines is None else _start_of_tail(file.fileno(), end, lines)
        file.seek(start)
        return file.read(end - start).decode(errors="replace"), end


def follow(path: Path, position: int, ended: Callable[[], bool]) -> Iterator[str]:
    """Yield what is added behind `position` until `ended` says so and nothing more comes."""
    while True:
        over = ended()  # first: what was written before the end is then still read
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                added = file.read()
            if added:
                position += len(added)
                yield added.decode(errors="replace")
        if over:
            return
        time.sleep(POLL_SECONDS)


def _start_of_tail(handle: int, end: int, lines: int) -> int:
    """Return where the last `lines` lines begin, reading backwards."""
    start, found = end, 0
    while start > 0:
        block = os.pread(handle, min(BLOCK_BYTES, start), max(0, start - BLOCK_BYTES))
        start = max(0, start - BLOCK_BYTES)
        for place in range(len(block) - 1, -1, -1):
            # The newline that ends the file ends the last line and begins none.
            if block[place] == NEWLINE and start + place < end - 1:
                found += 1
                if found == lines:
                    return start + place + 1
    return 0
