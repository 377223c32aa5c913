"""One attempt at a run: its folder, its right to publish, and the beat that says it lives."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ClusterError
from cluster.files import write_json
from cluster.lease import BEAT_SECONDS, Lease, latest_attempt
from cluster.run_paths import RunPaths
from cluster.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What every part of the trainer needs to know of the run it works for.

    Attributes:
        paths: The run's files.
        lease: The right to publish into them.
        settings: Of this machine.
        began: When the attempt began, on the monotonic clock.
    """

    paths: RunPaths
    lease: Lease
    settings: Settings
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, folder: Path, number: int | None, settings: Settings) -> "Attempt":
        """Join attempt `number`, or claim the next one when started by hand.

        Raises:
            LeaseLost: Another process owns the run.
        """
        paths = RunPaths(folder.absolute())
        if number is not None:
            return cls(paths=paths, lease=Lease.join(paths, number), settings=settings)
        return cls(paths=paths, lease=Lease.claim(paths, after=latest_attempt(paths)), settings=settings)

    @property
    def number(self) -> int:
        """The attempt's number."""
        return self.lease.attempt

    @property
    def seconds(self) -> float:
        """How long the attempt has been going."""
        return time.monotonic() - self.began

    def fail(self, error: Exception) -> None:
        """Write `error.json`, unless a newer attempt owns the run."""
        line = " ".join(str(error).split()) or type(error).__name__
        try:
            self.lease.check()
        except ClusterError:
            return
        write_json(self.paths.error, {"attempt": self.number, "error": line})

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat from a thread while the block runs."""
        done = threading.Event()
        thread = threading.Thread(target=self._beat_until, args=(done,), name="lease-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _beat_until(self, done: threading.Event) -> None:
        while not done.is_set():
            try:
                self.lease.beat()
            except OSError as error:  # a pause of the storage is no reason to stop beating
                logger.warning("the beat of attempt %d could not be written: %s", self.number, error)
            done.wait(BEAT_SECONDS)
