"""Logs a run to TensorBoard while it runs: a thread that reads the run's files and cannot fail the run.

For MLflow the run is only marked: job workers send it, so that no server can delay it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, Protocol

from cluster.errors import LeaseLost, StorageError
from trainer.attempt import Attempt
from trainer.errors import Stopped
from trainer.result import RunResult
from trainer.specs import AnySpec
from trainer.tracking.history import EpochHistory, read_epoch_history
from trainer.tracking.mlflow import mark_for_mlflow
from trainer.tracking.tensorboard import TensorBoardWriter

POLL_SECONDS = 2.0
RETRY_SECONDS = 60.0  # after a failure
FINISH_TIMEOUT_SECONDS = 30.0  # how long the end of a run waits for a slow disk
TRACKED_KINDS = ("train", "search", "evaluate")  # the specs of other kinds may hold names of images

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A destination for the metrics of a run."""

    def log_epochs(self, history: EpochHistory) -> None:
        """Log all epochs so far."""

    def finish(self, status: str, metrics: dict[str, Any]) -> None:
        """Log the final metrics and the status: FINISHED, FAILED or KILLED."""


@dataclass
class RetryingTracker:
    """Calls a tracker, retries after failures, and logs the first failure only.

    Attributes:
        name: Name of the tracker in log lines.
    """

    name: str
    tracker: Tracker
    _failed_at: float | None = None

    def attempt(self, call: Callable[[Tracker], None], *, is_last: bool = False) -> None:
        """Call the tracker; skip the call for `RETRY_SECONDS` after a failure unless it is the last one."""
        if self._failed_at is not None and not is_last and time.monotonic() - self._failed_at < RETRY_SECONDS:
            return
        try:
            call(self.tracker)
        except Exception as error:  # no failure of a tracker may fail the run
            if self._failed_at is None:
                logger.warning("%s cannot log this run (%s); retrying", self.name, type(error).__name__)
            self._failed_at = time.monotonic()


@dataclass
class Tracking:
    """The tracking of one run.

    Attributes:
        result: Set when the run succeeds.
        status: Status of the run at its end.
    """

    attempt: Attempt
    trackers: list[RetryingTracker]
    result: RunResult | None = None
    status: str = "FAILED"
    _finished: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Poll the files of the run until it finishes, and once more after that."""
        is_finished = False
        while not is_finished:
            is_finished = self._finished.wait(POLL_SECONDS)
            try:
                self.attempt.lease.check()
                history = read_epoch_history(self.attempt.paths)
            except LeaseLost:
                return
            except (OSError, StorageError):  # the storage is away or does not answer; it may be back at the next poll
                continue
            for tracker in self.trackers:
                if history:
                    tracker.attempt(methodcaller("log_epochs", history), is_last=is_finished)
        metrics = self.result.metrics if self.result else {}
        for tracker in self.trackers:
            tracker.attempt(methodcaller("finish", self.status, metrics), is_last=True)

    def finish(self, status: str) -> None:
        """Set the final status and let the thread end."""
        self.status = status
        self._finished.set()


@contextmanager
def track_run(attempt: Attempt, spec: AnySpec) -> Iterator[Tracking]:
    """Track a run while the block executes; the caller sets `result` on the yielded object."""
    _mark(attempt, spec)
    tracking = Tracking(attempt, _trackers(attempt, spec))
    thread = threading.Thread(target=tracking.run, name="tracking", daemon=True)
    thread.start()
    try:
        yield tracking
    except Stopped:
        tracking.finish("KILLED")
        raise
    finally:
        tracking.finish("FINISHED" if tracking.result else tracking.status)
        thread.join(FINISH_TIMEOUT_SECONDS)


def _trackers(attempt: Attempt, spec: AnySpec) -> list[RetryingTracker]:
    if spec.kind not in TRACKED_KINDS:
        return []
    return [RetryingTracker("TensorBoard", TensorBoardWriter(attempt.paths))]


def _mark(attempt: Attempt, spec: AnySpec) -> None:
    if spec.kind not in TRACKED_KINDS or attempt.settings.mlflow_uri is None:
        return
    try:
        mark_for_mlflow(attempt.paths.storage, attempt.paths.run_id)
    except OSError as error:
        logger.warning("MLflow gets nothing of this run (%s)", error.strerror)
