"""Processes of the trainer that do a part of its work and exchange messages with it."""

import contextlib
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from cluster import guard

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"  # of the trainer and of processes that it spawns

OPEN_FILES = Path("/proc/self/fd")

StartMethod: TypeAlias = Literal["fork", "spawn"]


class ChildProcess:
    """A process which computes with one thread on the CPU and ends with the trainer.

    Args:
        target: What it does; called with its end of the connection, then with the arguments.
        arguments: Of any type for a fork, as nothing is pickled.
        method: "fork" shares the memory of the trainer, so that nothing has to be imported. It can use GPUs only
            while `forks_can_use_gpus`. "spawn" starts Python.

    Attributes:
        connection: The trainer's end, for messages to it and back.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any, method: StartMethod = "fork") -> None:
        context = multiprocessing.get_context(method)
        self.connection, other = context.Pipe()
        # typeshed has no class that both contexts share
        self._process: Any = context.Process(  # type: ignore[attr-defined]
            target=_begin, args=(os.getpid(), target, other, *arguments), daemon=True
        )
        with warnings.catch_warnings():
            # The other threads of a trainer send heartbeats and log epochs; the child uses no lock of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        other.close()

    @property
    def exit_code(self) -> int:
        """How it ended: below 0 the number of the signal; 0 while it runs."""
        return self._process.exitcode or 0

    def send(self, message: object) -> None:
        """Send a message; that the process has died is noticed when its answer is read."""
        with contextlib.suppress(ConnectionError):
            self.connection.send(message)

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def forks_can_use_gpus() -> bool:
    """Whether a fork of this process can use GPUs, which CUDA does not allow once this process has used one."""
    return not (torch.cuda.is_initialized() or _has_opened_a_gpu())  # type: ignore[no-untyped-call]


def _has_opened_a_gpu() -> bool:
    """Whether this process has opened a device of the NVIDIA driver."""
    for file in OPEN_FILES.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed, as that of the folder itself is
            if str(file.readlink()).startswith("/dev/nvidia"):
                return True
    return False


def _begin(parent: int, target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    guard.die_with_parent(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the trainer too, which decides
    torch.set_num_threads(1)
    target(connection, *arguments)
