"""Times of day in which work may run: `20:00-07:00`, `--until 07:00`, durations `30m`. Pure: the clock is passed in.

All answers are aware datetimes. Wall times are resolved in the zone of the `now` that is passed, so a window opens at
20:00 as the wall clock shows it on both sides of a daylight-saving change. A wall time that the change skips means
the moment the clock jumps over it; one that comes twice means the first.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

from cluster.errors import SettingsError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration such as `90s`, `30m`, `8h` or `2d`.

    Raises:
        SettingsError: It is no duration, or it is zero.
    """
    match = _DURATION.fullmatch(duration.strip())
    if not match or float(match[1]) == 0:
        raise SettingsError(f"{duration!r} is no duration; write 30m, 8h or 2d")
    return float(match[1]) * _SECONDS[match[2]]


def time_of_day(text: str) -> time:
    """Return the wall time of `HH:MM`.

    Raises:
        SettingsError: It is no time of day.
    """
    try:
        return datetime.strptime(text.strip(), "%H:%M").time()
    except ValueError as error:
        raise SettingsError(f"{text!r} is no time of day; write it as 07:00") from error


def next_at(moment: time, now: datetime) -> datetime:
    """Return the first moment after `now` at which the wall clock of `now`'s zone shows `moment`."""
    for days in range(3):
        candidate = _on_day(now, moment, days)
        if candidate.astimezone(UTC) > now.astimezone(UTC):
            return candidate
    raise AssertionError("every wall time comes within two days")


@dataclass(frozen=True)
class TimeWindow:
    """A daily span of wall time, over midnight when it ends before it starts."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "TimeWindow":
        """Read `20:00-07:00`.

        Raises:
            SettingsError: It is no span, or one that never opens.
        """
        start, dash, end = text.partition("-")
        if not dash:
            raise SettingsError(f"{text!r} is no window; write it as 20:00-07:00")
        window = cls(time_of_day(start), time_of_day(end))
        if window.start == window.end:
            raise SettingsError(f"window {text} never opens; its start and end must differ")
        return window

    def closes(self, now: datetime) -> datetime | None:
        """Return when the window that is open at `now` closes, or None when it is shut."""
        over_midnight = 1 if self.end <= self.start else 0
        for day in (-1, 0):
            opened = _on_day(now, self.start, day)
            closing = _on_day(now, self.end, day + over_midnight)
            # In UTC: Python compares two times of one zone by their wall clock, which shows one hour twice a year.
            if opened.astimezone(UTC) <= now.astimezone(UTC) < closing.astimezone(UTC):
                return closing
        return None

    def opens(self, now: datetime) -> datetime:
        """Return `now` when the window is open, else when it opens next."""
        return now if self.closes(now) else next_at(self.start, now)

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


def _on_day(now: datetime, moment: time, days: int) -> datetime:
    day = (now + timedelta(days=days)).date()
    wall = datetime.combine(day, moment, tzinfo=now.tzinfo)
    return wall.astimezone(UTC).astimezone(now.tzinfo)  # a wall time that does not exist moves to one that does
