"""Shows a run to TensorBoard and MLflow as it goes: a thread that reads the run's files, and can harm nothing."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, Protocol
from urllib.parse import urlsplit

from cluster.errors import LeaseLost
from trainer.attempt import Attempt
from trainer.errors import Stopped
from trainer.result import RunResult
from trainer.specs import AnySpec
from trainer.tracking.history import EpochHistory, read_epoch_history
from trainer.tracking.mlflow import MlflowRun
from trainer.tracking.tensorboard import TensorBoardWriter

LOOK_SECONDS = 2.0
AGAIN_SECONDS = 60.0  # after a failure
LAST_SECONDS = 30.0  # that the end of a run waits for a slow server
SHOWN = ("train", "search", "evaluate")  # the wish of the others may hold names of images

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A place where people look at runs."""

    def show(self, curves: EpochHistory) -> None:
        """Show all epochs so far."""

    def end(self, status: str, figures: dict[str, Any]) -> None:
        """Show how the run ended: FINISHED, FAILED or KILLED, in MLflow's words."""


@dataclass
class RetryingTracker:
    """Tries to show things on one screen, and says once that it fails.

    Attributes:
        name: Of the screen, fit for the log.
    """

    name: str
    screen: Tracker
    _failed_at: float | None = None

    def attempt(self, show: Callable[[Tracker], None], *, at_last: bool = False) -> None:
        """Show something; after a failure not before a while, but for the last time."""
        if self._failed_at is not None and not at_last and time.monotonic() - self._failed_at < AGAIN_SECONDS:
            return
        try:
            show(self.screen)
        except Exception as error:  # whatever it is, no run ends because nobody can look at it
            if self._failed_at is None:  # not its text, which may hold the address with a password
                cure = "install nightshift[mlflow]" if isinstance(error, ImportError) else "it is told when it answers"
                logger.warning("%s is not told of the run (%s); %s", self.name, type(error).__name__, cure)
            self._failed_at = time.monotonic()


@dataclass
class Tracking:
    """A run that is shown.

    Attributes:
        result: Set when the run has succeeded.
        status: How it ended, in MLflow's words.
    """

    attempt: Attempt
    screens: list[RetryingTracker]
    result: RunResult | None = None
    status: str = "FAILED"
    _over: threading.Event = field(default_factory=threading.Event)

    def go_on(self) -> None:
        """Look again and again until the run is over, and once more then."""
        is_over = False
        while not is_over:
            is_over = self._over.wait(LOOK_SECONDS)
            try:
                self.attempt.lease.check()
            except LeaseLost:
                return
            curves = read_epoch_history(self.attempt.paths)
            for patience in self.screens:
                if curves:
                    patience.attempt(methodcaller("show", curves), at_last=is_over)
        figures = self.result.metrics if self.result else {}
        for patience in self.screens:
            patience.attempt(methodcaller("end", self.status, figures), at_last=True)

    def finish(self, status: str) -> None:
        """Say that the run is over."""
        self.status = status
        self._over.set()


@contextmanager
def track_run(attempt: Attempt, spec: AnySpec) -> Iterator[Tracking]:
    """Show a run while the block runs; set the `result` of what is yielded when there is one."""
    tracking = Tracking(attempt, _screens(attempt, spec))
    thread = threading.Thread(target=tracking.go_on, name="tracking", daemon=True)
    thread.start()
    try:
        yield tracking
    except Stopped:
        tracking.finish("KILLED")
        raise
    finally:
        tracking.finish("FINISHED" if tracking.result else tracking.status)
        thread.join(LAST_SECONDS)


def _screens(attempt: Attempt, spec: AnySpec) -> list[RetryingTracker]:
    if spec.kind not in SHOWN:
        return []
    found = [RetryingTracker("TensorBoard", TensorBoardWriter(attempt.paths))]
    if uri := attempt.settings.mlflow_uri:
        name = f"MLflow at {urlsplit(uri).hostname or 'its storage'}"
        found.append(RetryingTracker(name, MlflowRun(uri, attempt.paths.run_id, spec.to_json())))
    return found
