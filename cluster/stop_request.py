"""`stop.json`: the request that an attempt save a checkpoint and stop. Its only reader and its only writer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from cluster.files import locked, read_json, write_json

CANCEL = "cancel"
REASONS = (CANCEL, "drain", "window", "overtime")


@dataclass(frozen=True)
class StopRequest:
    """Why an attempt should stop, and how soon.

    Attributes:
        reason: "cancel", "drain", "window" or "overtime".
        attempt: The attempt that it is meant for; None means whichever runs.
        now: Kill the attempt instead of waiting for a checkpoint.
        seconds: How long to wait for the checkpoint; None leaves that to whoever watches the attempt.
    """

    reason: str
    attempt: int | None = None
    now: bool = False
    seconds: float | None = None

    @classmethod
    def read(cls, file: Path, attempt: int) -> "StopRequest | None":
        """Return the request to stop `attempt`, None if there is none or it cannot be read."""
        if not file.exists():
            return None
        try:
            request = cls.from_json(read_json(file))
        except StorageError:
            return None  # removed between the two looks
        return request if request is not None and request.attempt in (None, attempt) else None

    @classmethod
    def from_json(cls, value: Any) -> "StopRequest | None":
        """Return the request that a parsed `stop.json` means, None if it has another shape."""
        if not isinstance(value, dict):
            return None
        reason, attempt, seconds = value.get("reason"), value.get("attempt"), value.get("seconds")
        if reason not in REASONS or isinstance(attempt, bool) or not isinstance(attempt, int | None):
            return None
        if isinstance(seconds, bool) or not isinstance(seconds, int | float | None):
            return None
        return cls(reason, attempt, now=value.get("now") is True, seconds=seconds)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `stop.json`."""
        optional = {"now": self.now or None, "seconds": self.seconds}
        given = {name: value for name, value in optional.items() if value is not None}
        return {"reason": self.reason, "attempt": self.attempt, **given}

    def publish(self, file: Path) -> None:
        """Write the request unless an earlier one for the same attempt stands; a cancel replaces every other reason."""
        with locked(file.with_name(".stop.lock")):
            earlier = StopRequest.read(file, self.attempt) if self.attempt is not None else None
            if earlier is None or self._outranks(earlier):
                write_json(file, self.to_json())

    def _outranks(self, earlier: "StopRequest") -> bool:
        return self.reason == CANCEL and (earlier.reason != CANCEL or (self.now and not earlier.now))


@dataclass
class StopWatcher:
    """Looks for a request to stop one attempt, and remembers the first that it reads: it is not taken back."""

    file: Path
    attempt: int
    _found: StopRequest | None = None

    def reason(self) -> str | None:
        """Return why the attempt should stop, None while nobody asks for it."""
        if self._found is None:
            self._found = StopRequest.read(self.file, self.attempt)
        return None if self._found is None else self._found.reason
