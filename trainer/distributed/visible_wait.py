"""A wait for resources that people see: in the run's progress and log, and that a request to stop ends."""

import logging
from collections.abc import Callable

from cluster.stop_request import StopWatcher
from trainer.attempt import Attempt
from trainer.errors import Stopped
from trainer.progress import Progress

logger = logging.getLogger(__name__)


class VisibleWait:
    """Says in the run's progress what it waits for, and ends the wait when the run has to stop.

    Attributes:
        attempt: The run that waits.
        text: What it waits for; empty before the first wait.
    """

    def __init__(self, attempt: Attempt, stop_reason: Callable[[], str | None] | None = None) -> None:
        """`stop_reason` returns why to stop waiting, or None; by default it is the request to stop the run."""
        self.attempt, self.text = attempt, ""
        self.stop_reason = stop_reason or StopWatcher(attempt.paths.stop, attempt.number).reason

    def __call__(self, text: str) -> None:
        """Say what the run waits for, such as "waiting for 2 GPUs (1 free)"; call it every few seconds.

        Raises:
            Stopped: The run was asked to stop.
        """
        if reason := self.stop_reason():
            raise Stopped(f"stopped ({reason}) while {text}")
        if text != self.text:
            self.text = text
            logger.info("%s", text)
            Progress(self.attempt.paths, self.attempt.lease).start_phase(text, total=0)

    def ended(self) -> None:
        """Return to the phase "starting" if there was a wait."""
        if self.text:
            Progress(self.attempt.paths, self.attempt.lease).write()
