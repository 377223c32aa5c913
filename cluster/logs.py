"""Read a run's log from the storage: the last lines, and new ones as they are written."""

import os
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cluster.files import open_file
from cluster.storage_patience import StoragePatience

POLL_SECONDS = 0.3
BLOCK_BYTES = 65_536
NEWLINE = 0x0A
COLOR_CODES = re.compile(r"\x1b\[[0-9;]*m")  # Ray colors its log


def tail(path: Path, lines: int | None) -> tuple[str, int]:
    """Return the last `lines` lines (None: all) and the byte offset after them. A log that does not exist is empty."""
    if not path.exists():
        return "", 0
    with open_file(path) as file:
        end = file.seek(0, 2)
        start = 0 if lines is None else _start_of_tail(file.fileno(), end, lines)
        file.seek(start)
        return file.read(end - start).decode(errors="replace"), end


def shown_end(path: Path, *, lines: int, most_bytes: int) -> str:
    """Return the last lines of a log as a terminal would show them, without colors.

    Of a line that a progress bar has overwritten, this is what it shows last. A log that does not exist is empty.

    Args:
        path: The log.
        lines: Most lines.
        most_bytes: Bytes of the log that are read, from its end.
    """
    try:
        with open_file(path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - most_bytes)
            file.seek(start)
            raw = file.read(most_bytes)
    except FileNotFoundError:
        return ""
    found = raw.decode(errors="replace").split("\n")
    whole = found[1:] if start and len(found) > 1 else found
    shown = [COLOR_CODES.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in whole]
    ends_with_newline = 1 if shown[-1] == "" else 0
    return "\n".join(shown[-(lines + ends_with_newline) :])


def follow(path: Path, position: int, ended: Callable[[], bool], patience: StoragePatience) -> Iterator[str]:
    """Yield the text after byte offset `position` as it is appended, until `ended()` is true and all was read."""
    while True:
        over = patience.call(ended)  # before reading, so that text written before the end is still read
        if added := patience.call(partial(_after, path, position)):
            position += len(added)
            yield added.decode(errors="replace")
        if over:
            return
        time.sleep(POLL_SECONDS)


def _after(path: Path, position: int) -> bytes:
    """Return what a file holds after a byte offset; a file that does not exist is empty."""
    if not path.exists():
        return b""
    with open_file(path) as file:
        file.seek(position)
        try:
            return file.read()
        except OSError as error:  # it names no file
            raise OSError(error.errno, error.strerror, str(path)) from error


def _start_of_tail(handle: int, end: int, lines: int) -> int:
    """Return the offset at which the last `lines` lines begin. The file is read backwards, block by block."""
    start, found = end, 0
    while start > 0:
        block = os.pread(handle, min(BLOCK_BYTES, start), max(0, start - BLOCK_BYTES))
        start = max(0, start - BLOCK_BYTES)
        for place in range(len(block) - 1, -1, -1):
            # The newline at the end of the file does not start another line.
            if block[place] == NEWLINE and start + place < end - 1:
                found += 1
                if found == lines:
                    return start + place + 1
    return 0
