"""What `ps` and /proc show of a process that was forked: by default, the command line and environment of its parent.

The kernel shows a piece of the process' own memory, which is written over here. It cannot grow, so the process that
forks is started with `PADDING` as its last argument, and with `ROOM` as the value of a variable that is to be shown.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

PADDING = "-" * 2048  # room for the command line of a fork
ROOM = "-" * 128  # room for the value of a variable


def show_command(arguments: Sequence[str]) -> None:
    """Show these arguments as the command line of this process, cut off where there is no more room."""
    start, end, _, _ = _places()
    text = b"".join(argument.encode(errors="surrogateescape") + b"\0" for argument in arguments)
    _write(start, end - start, text)


def show_variable(name: str, value: str) -> None:
    """Show a value in the environment of this process, if it was started with `ROOM` for it."""
    _, _, start, end = _places()
    before = f"{name}=".encode()
    shown = b"\0" + ctypes.string_at(start, end - start)
    place = shown.find(b"\0" + before + ROOM.encode() + b"\0")
    if place >= 0:
        _write(start + place + len(before), len(ROOM) + 1, value.encode(errors="surrogateescape") + b"\0")


def _places() -> tuple[int, int, int, int]:
    """Return where the arguments begin and end in memory, and the environment; see `arg_start` in proc_pid_stat(5)."""
    fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    start, end, environment_start, environment_end = map(int, fields[45:49])
    return start, end, environment_start, environment_end


def _write(start: int, size: int, text: bytes) -> None:
    """Write over `size` bytes; the last one stays 0, which tells the kernel that the arguments end there."""
    if size > 0:
        ctypes.memmove(start, text[: size - 1].ljust(size, b"\0"), size)
