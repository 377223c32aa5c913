"""Says where every thread stands when a worker makes no headway, before the collective's own timeout ends it."""

import faulthandler
import math
import sys
import time
from dataclasses import dataclass

BEFORE_TIMEOUT = 0.8  # of the time after which a collective gives up: the stacks must be told before the process ends
REARM_SECONDS = 1.0


@dataclass
class Watchdog:
    """Prints all stacks to stderr, which is the run's log, unless `pat` is called in time; by default never."""

    hang_seconds: float = math.inf
    _patted: float = float("-inf")

    def pat(self) -> None:
        """Say that there is headway."""
        if self.hang_seconds < math.inf and time.monotonic() - self._patted >= REARM_SECONDS:
            self._patted = time.monotonic()
            faulthandler.dump_traceback_later(self.hang_seconds * BEFORE_TIMEOUT, file=sys.__stderr__ or sys.stderr)

    def rest(self) -> None:
        """Watch no longer."""
        faulthandler.cancel_dump_traceback_later()
