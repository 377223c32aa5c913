"""The deadline of a search, and whether one more trial fits in before it. Pure: the clock is passed in."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from cluster.windows import TimeWindow, zone_of
from trainer.search.trials import TrialTable
from trainer.specs import SearchSpec

Clock = Callable[[], datetime]
Closing = Literal["until", "max_duration", "window"]

MARGIN = 1.25  # trials differ; a trial starts only if the estimate and a quarter more fit into the time left


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """When the search stops.

    Attributes:
        ends: The time, in UTC; None for never.
        why: Which option set it.
    """

    ends: datetime | None = None
    why: Closing | None = None

    @classmethod
    def of(cls, spec: SearchSpec, *, began: datetime, now: datetime) -> "Deadline":
        """Return the earliest of the time limits of a search.

        Args:
            spec: The search.
            began: When its first attempt began.
            now: Timezone-aware. While the time window is closed, the deadline is `now`.
        """
        ends: list[tuple[datetime, Closing]] = []
        if spec.until is not None:
            ends.append((spec.until.astimezone(UTC), "until"))
        if spec.max_duration_seconds is not None:
            ends.append((began.astimezone(UTC) + timedelta(seconds=spec.max_duration_seconds), "max_duration"))
        if spec.window is not None:
            closing = TimeWindow.parse(spec.window).closes(now.astimezone(zone_of(spec.timezone)))
            ends.append(((closing or now).astimezone(UTC), "window"))
        if not ends:
            return cls()
        moment, why = min(ends, key=lambda end: end[0])
        return cls(ends=moment, why=why)

    def is_over(self, now: datetime) -> bool:
        """Return whether running trials must pause."""
        return self.ends is not None and now.astimezone(UTC) >= self.ends

    def has_room_for(self, seconds: float, now: datetime) -> bool:
        """Return whether work of `seconds` ends before the deadline."""
        return self.ends is None or now.astimezone(UTC) + timedelta(seconds=seconds) <= self.ends


def seconds_of_trial(table: TrialTable, epochs: int, done: int = 0) -> float:
    """Return how long a trial needs after `done` epochs, at the speed of the slowest so far; 0 before any epoch."""
    speeds = [trial.seconds / trial.epochs for trial in table.trials.values() if trial.reports]
    return MARGIN * max(speeds, default=0.0) * max(0, epochs - done)
