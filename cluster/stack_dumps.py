"""Stacks of all threads of a process, written when another process asks for them with a signal."""

import faulthandler
import signal
import sys
from pathlib import Path

SIGNAL = signal.SIGUSR1


def enable() -> None:
    """Write the stacks of all threads to stderr at each `SIGNAL`, also while the process waits in C code."""
    stream = sys.__stderr__
    if stream is not None:
        faulthandler.register(SIGNAL, file=stream, all_threads=True)


def is_enabled_in(pid: int) -> bool:
    """Whether a process catches `SIGNAL`: another one would be killed by it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    caught = next((line.partition(":")[2] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (SIGNAL - 1) & 1)
