"""Logs a run to TensorBoard while it runs: a thread that reads the run's files and cannot fail the run.

For MLflow the run is only marked: job workers send it, so that no server can delay it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from cluster.errors import LeaseLost, StorageError
from trainer.attempt import Attempt
from trainer.specs import AnySpec
from trainer.tracking.history import read_epoch_history
from trainer.tracking.mlflow import mark_for_mlflow
from trainer.tracking.tensorboard import TensorBoardWriter

POLL_SECONDS = 2.0
RETRY_SECONDS = 60.0  # after a failure
FINISH_TIMEOUT_SECONDS = 30.0  # how long the end of a run waits for a slow disk
TRACKED_KINDS = ("train", "search", "evaluate")  # the specs of other kinds may hold names of images

logger = logging.getLogger(__name__)


@contextmanager
def track_run(attempt: Attempt, spec: AnySpec) -> Iterator[None]:
    """Track a run while the block executes."""
    if spec.kind not in TRACKED_KINDS:
        yield
        return
    _mark(attempt)
    tracking = Tracking(attempt, TensorBoardWriter(attempt.paths))
    thread = threading.Thread(target=tracking.run, name="tracking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        tracking.ended.set()
        thread.join(FINISH_TIMEOUT_SECONDS)


def _mark(attempt: Attempt) -> None:
    if attempt.settings.mlflow_uri is None:
        return
    try:
        mark_for_mlflow(attempt.paths.storage, attempt.paths.run_id)
    except OSError as error:
        logger.warning("MLflow gets nothing of this run (%s)", error.strerror)


@dataclass
class Tracking:
    """Gives a writer the epochs of one run; retries after failures, and logs the first failure only.

    Attributes:
        ended: Set when the run has ended.
    """

    attempt: Attempt
    writer: TensorBoardWriter
    ended: threading.Event = field(default_factory=threading.Event)
    _failed_at: float | None = None

    def run(self) -> None:
        """Read the files of the run until it has ended, and once more after that."""
        has_ended = False
        while not has_ended:
            has_ended = self.ended.wait(POLL_SECONDS)
            try:
                self.attempt.lease.check()
                history = read_epoch_history(self.attempt.paths)
            except LeaseLost:
                return
            except (OSError, StorageError):  # the storage is away or does not answer; it may be back at the next poll
                continue
            if history and (has_ended or not self._failed_lately()):
                self._try(partial(self.writer.log_epochs, history))
        self._try(self.writer.close)

    def _failed_lately(self) -> bool:
        return self._failed_at is not None and time.monotonic() - self._failed_at < RETRY_SECONDS

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # no failure of the event files may fail the run
            if self._failed_at is None:
                logger.warning("TensorBoard cannot log this run (%s); retrying", type(error).__name__)
            self._failed_at = time.monotonic()
