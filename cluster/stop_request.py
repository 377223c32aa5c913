"""`stop.json`: asks an attempt to save a checkpoint and stop. Only this module reads and writes it."""

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import files
from cluster.errors import StorageAway, StorageError
from cluster.files import is_unanswered, locked, read_json, write_json

CANCEL = "cancel"
REASONS = (CANCEL, "drain", "window", "overtime")
# Between two looks of a training on a GPU, whose steps may be shorter than a look at a network storage.
GPU_SECONDS = 0.2


@dataclass(frozen=True)
class StopRequest:
    """Why an attempt should stop, and how soon.

    Attributes:
        reason: "cancel", "drain", "window" or "overtime".
        attempt: The attempt to stop; None means the one that runs.
        now: Kill the attempt instead of waiting for a checkpoint.
        seconds: How long to wait for the checkpoint; None: the job worker decides.
    """

    reason: str
    attempt: int | None = None
    now: bool = False
    seconds: float | None = None

    @classmethod
    def read(cls, file: Path, attempt: int) -> "StopRequest | None":
        """Return the request to stop `attempt`, or None if there is none or it is damaged.

        Raises:
            OSError, StorageAway: The storage does not answer, so nobody knows.
        """
        try:
            request = cls.from_json(read_json(file))
        except StorageError as error:
            if is_unanswered(error):
                raise StorageAway(str(error)) from error
            return None
        return request if request is not None and request.attempt in (None, attempt) else None

    @classmethod
    def from_json(cls, value: Any) -> "StopRequest | None":
        """Return the request in a parsed `stop.json`, or None if it does not have the right shape."""
        if not isinstance(value, dict):
            return None
        reason, attempt, seconds = value.get("reason"), value.get("attempt"), value.get("seconds")
        if reason not in REASONS or isinstance(attempt, bool) or not isinstance(attempt, int | None):
            return None
        if isinstance(seconds, bool) or not isinstance(seconds, int | float | None):
            return None
        if seconds is not None and not 0 <= seconds < float("inf"):  # NaN fails it
            return None
        return cls(reason, attempt, now=value.get("now") is True, seconds=seconds)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `stop.json`."""
        optional = {"now": self.now or None, "seconds": self.seconds}
        given = {name: value for name, value in optional.items() if value is not None}
        return {"reason": self.reason, "attempt": self.attempt, **given}

    def publish(self, file: Path, *, patience: float | None = None) -> None:
        """Write the request, unless there is one for the same attempt. A cancel replaces every other reason.

        `patience` are the seconds to wait for the lock, `LOCK_SECONDS` by default.

        Raises:
            OSError, StorageError: The storage does not answer, or is full, or a process that is stopped holds the lock.
        """
        if self._is_covered(file):  # without the lock, for those that ask several times a second
            return
        with locked(file.with_name(".stop.lock"), patience=files.LOCK_SECONDS if patience is None else patience):
            if not self._is_covered(file):
                _set_folder_aside(file)
                write_json(file, self.to_json())

    @staticmethod
    def remove(file: Path) -> None:
        """Remove the request, if there is one, since it was meant for an earlier attempt or has had its effect."""
        _set_folder_aside(file)
        file.unlink(missing_ok=True)

    def _is_covered(self, file: Path) -> bool:
        earlier = StopRequest.read(file, self.attempt) if self.attempt is not None else None
        return earlier is not None and not self._outranks(earlier)

    def _outranks(self, earlier: "StopRequest") -> bool:
        return self.reason == CANCEL and (earlier.reason != CANCEL or (self.now and not earlier.now))


def _set_folder_aside(file: Path) -> None:
    """Rename a folder that stands in place of the file: it must not keep a run from being stopped."""
    if file.is_dir() and not file.is_symlink():
        file.rename(file.with_name(f"{file.name}.folder-{secrets.token_hex(4)}"))


@dataclass
class StopWatcher:
    """Checks for a request to stop one attempt. Once it has read a request, it keeps it.

    While the storage does not answer there is none: what reads or writes it for another purpose finds out.

    Attributes:
        every_seconds: Between two looks at the storage; 0: it looks each time that it is asked.
        now: The clock, in seconds.
    """

    file: Path
    attempt: int
    every_seconds: float = 0.0
    now: Callable[[], float] = time.monotonic
    _found: StopRequest | None = None
    _next_look: float = 0.0

    def reason(self) -> str | None:
        """Return why the attempt should stop, or None if there is no request."""
        if self._found is None and (not self.every_seconds or self.now() >= self._next_look):
            self._next_look = self.now() + self.every_seconds
            with contextlib.suppress(OSError, StorageError):
                self._found = StopRequest.read(self.file, self.attempt)
        return None if self._found is None else self._found.reason
