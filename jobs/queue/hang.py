"""Finds out that a trainer hangs: it is alive, but its progress does not change, in whatever phase it is.

A heartbeat says that a process exists, not that it works: a trainer that waits for ever in an import, a data loader or
a file system still has one.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import StorageError
from cluster.files import read_json_object_or_empty
from cluster.run_paths import RunPaths

CHECK_SECONDS = 5.0  # a check reads the progress file of each training of the run
LONGEST_FACTOR = 3.0  # a pause may be this many times as long as the longest one before it
STARTING_FACTOR = 6.0  # on a cluster a trainer waits in its first phase for machines to start
STARTING = "starting"
WAITING = "waiting"  # how phases begin in which nothing hangs: "waiting", "waiting for 2 GPUs (1 free)"
WORK = ("phase", "epoch", "done", "trials")  # of progress.json; its speed and ETA change with the clock


@dataclass
class ProgressWatch:
    """Measures how long the progress of one attempt has not changed.

    Only time in which this process runs counts: a job worker that was stopped itself does not blame the trainer.

    Attributes:
        limit_seconds: Shortest pause that counts as a hang.
        on_cluster: Whether the trainer runs on a Ray cluster, where it may wait for machines.
        now: The monotonic clock, in seconds.
    """

    paths: RunPaths
    attempt: int
    limit_seconds: float
    on_cluster: bool = False
    now: Callable[[], float] = time.monotonic
    check_seconds: float = CHECK_SECONDS
    idle_seconds: float = 0.0
    longest_seconds: float = 0.0
    phase: str = STARTING
    _last: object = None
    _checked: float = field(default=float("-inf"))

    def hang(self) -> str | None:
        """Return why the attempt counts as hung, None while it does not; call it more often than `check_seconds`.

        Time in which the storage does not answer does not count: the progress is not known then.
        """
        now = self.now()
        if now - self._checked < self.check_seconds:
            return None
        passed = min(now - self._checked, 2 * self.check_seconds) if self._last is not None else 0.0
        self._checked = now
        try:
            progress = list(self._progress())
            work = (progress_of(progress), self._log_bytes())
        except (OSError, StorageError):
            return None
        if work != self._last or self.phase.startswith(WAITING):
            self.longest_seconds = max(self.longest_seconds, self.idle_seconds)
            self._last, self.idle_seconds = work, 0.0
            return None
        self.idle_seconds += passed
        limit = self._limit(progress)
        if self.idle_seconds < limit:
            return None
        stacks = "" if self.on_cluster else "; the log has the stacks"  # there, the processes cannot be asked for them
        return f"no progress for {self.idle_seconds:.0f} s in the phase {self.phase!r}{stacks}"

    def _limit(self, progress: list[dict[str, Any]]) -> float:
        """Return the seconds without progress after which this phase hangs."""
        known = [float(one["hang_seconds"]) for one in progress if isinstance(one.get("hang_seconds"), int | float)]
        limit = max([self.limit_seconds, *known, LONGEST_FACTOR * self.longest_seconds])
        return limit * STARTING_FACTOR if self.on_cluster and self.phase == STARTING else limit

    def _progress(self) -> Iterator[dict[str, Any]]:
        """Yield the progress of this attempt, and of the trainings of its trials."""
        self.phase = STARTING
        for file in (self.paths.progress, *self.paths.progress_of_trials()):
            found = read_json_object_or_empty(file)
            if found.get("attempt") == self.attempt:
                if file == self.paths.progress:
                    self.phase = str(found.get("phase", STARTING))
                yield found

    def _log_bytes(self) -> int:
        """Return the size of the log while the trainer starts: its libraries say there what they wait for."""
        if self.phase != STARTING or not self.paths.log.exists():
            return 0
        return self.paths.log.stat().st_size


def progress_of(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the parts of progress files that only change when work was done."""
    return [tuple(repr(one.get(name)) for name in WORK) for one in found]
