"""Processes that are forked from the trainer on CPUs: they share its memory, and nothing has to be imported."""

import contextlib
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from cluster import guard


class ForkedProcess:
    """A forked process, which computes with one thread and ends with the trainer.

    Args:
        target: What it does; called with its end of the connection, then with the arguments.
        arguments: Of any type, as nothing is pickled.

    Attributes:
        connection: The trainer's end, for messages to it and back.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_begin, args=(os.getpid(), target, other, *arguments), daemon=True)
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


def _begin(parent: int, target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    guard.die_with_parent(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the trainer too, which decides
    torch.set_num_threads(1)
    target(connection, *arguments)
