"""The night: until when a search may run, and whether one more trial fits into it. Pure: the clock is passed in."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from cluster.windows import TimeWindow, zone_of
from trainer.search.trials import TrialTable
from trainer.specs import SearchSpec

Clock = Callable[[], datetime]
Closing = Literal["until", "max_duration", "window"]

MARGIN = 1.25  # trials differ; one that is expected to end within a fifth of the time left is still let in


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """When the search stops.

    Attributes:
        ends: The moment, in UTC; None for never.
        why: What set it.
    """

    ends: datetime | None = None
    why: Closing | None = None

    @classmethod
    def of(cls, spec: SearchSpec, *, began: datetime, now: datetime) -> "Deadline":
        """Return the earliest of what ends the search.

        Args:
            spec: The wish.
            began: When the first attempt at the search began.
            now: Aware; in a shut window the night is over at once.
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
        """Return whether work of so many seconds ends in time."""
        return self.ends is None or now.astimezone(UTC) + timedelta(seconds=seconds) <= self.ends


def seconds_of_trial(table: TrialTable, epochs: int, done: int = 0) -> float:
    """Return how long the rest of a trial takes at most, judged by the slowest so far; 0 before the first epoch."""
    speeds = [trial.seconds / len(trial.reports) for trial in table.trials.values() if trial.reports]
    return MARGIN * max(speeds, default=0.0) * max(0, epochs - done)
