"""Sends SIGTERM again to a job worker that was told to stop and has not noticed.

RQ stops an idle worker by an exception that its signal handler raises, wherever the main thread is at this moment. In
redis-py that can be a block that ignores all exceptions, such as those that record its metrics.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

REMINDER_SECONDS = 1.0


class StopReminder:
    """A thread that sends SIGTERM to this process every second while `is_needed` says so."""

    def __init__(self, is_needed: Callable[[], bool]) -> None:
        """Prepare the thread; entering the context starts it."""
        self.is_needed = is_needed
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop-reminder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(REMINDER_SECONDS):
            if self.is_needed():
                os.kill(os.getpid(), signal.SIGTERM)
