"""Patience with a storage that does not answer for a moment, for whoever watches a run.

The server of a share restarts, or a network is interrupted, for minutes: the run survives that, and so should a command
that waits for it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from cluster.errors import StorageError
from cluster.files import is_unanswered

PATIENCE_SECONDS = 600.0  # longer than a file server takes to restart
POLL_SECONDS = 1.0

T = TypeVar("T")


@dataclass
class StoragePatience:
    """Repeats what reads the storage while the storage does not answer.

    Attributes:
        say: Called with a line when the storage stops answering, and when it answers again.
        seconds: How long one pause of the storage may last.
        pauses: How often the storage stopped answering.
    """

    say: Callable[[str], object]
    seconds: float = PATIENCE_SECONDS
    pauses: int = 0
    pause: Callable[[float], None] = field(default=time.sleep, repr=False)

    def call(self, read: Callable[[], T], *, until: float = float("inf")) -> T:
        """Return what `read` returns, and call it again as long as the storage does not answer.

        Args:
            read: It may be called several times.
            until: When to stop, as a time of the monotonic clock.

        Raises:
            OSError, StorageError: The storage has not answered for `seconds` or until `until`, or gave another error.
        """
        silent_since: float | None = None
        while True:
            try:
                found = read()
            except (OSError, StorageError) as error:
                now = time.monotonic()
                if not is_unanswered(error) or now >= until:
                    raise
                if silent_since is None:
                    silent_since, self.pauses = now, self.pauses + 1
                    self.say(f"waiting for the storage, at most {self.seconds:g} s: {fault_text(error)}")
                elif now - silent_since >= self.seconds:
                    raise
                self.pause(POLL_SECONDS)
                continue
            if silent_since is not None:
                self.say("the storage answers again")
            return found


def fault_text(error: OSError | StorageError) -> str:
    """Return what a person reads of an error of the storage."""
    return f"{error.filename} cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
