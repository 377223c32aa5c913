"""Durations (`30m`), times of day (`07:00`) and time windows (`20:00-07:00`). The current time is passed in.

All results are aware datetimes. Times of day are wall-clock times in the time zone of the `now` that is passed, so a
window opens at 20:00 on the wall clock on both sides of a daylight saving change. A time that the change skips means
the moment of the change; a time that occurs twice means the first occurrence.
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
        SettingsError: The text is not a duration, or it is zero.
    """
    match = _DURATION.fullmatch(duration.strip())
    if not match or float(match[1]) == 0:
        raise SettingsError(f"{duration!r} is not a duration; write 30m, 8h or 2d")
    return float(match[1]) * _SECONDS[match[2]]


def time_of_day(text: str) -> time:
    """Return the time of day that `HH:MM` means.

    Raises:
        SettingsError: The text is not a time of day.
    """
    try:
        return datetime.strptime(text.strip(), "%H:%M").time()
    except ValueError as error:
        raise SettingsError(f"{text!r} is not a time of day; write it as 07:00") from error


def next_at(moment: time, now: datetime) -> datetime:
    """Return the first moment after `now` at which the wall clock shows `moment`."""
    for days in range(3):
        candidate = _on_day(now, moment, days)
        if candidate.astimezone(UTC) > now.astimezone(UTC):
            return candidate
    raise AssertionError("every time of day occurs within two days")


@dataclass(frozen=True)
class TimeWindow:
    """A daily time window; it spans midnight if its end is before its start."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "TimeWindow":
        """Read `20:00-07:00`.

        Raises:
            SettingsError: The text is not a time window, or the window never opens.
        """
        start, dash, end = text.partition("-")
        if not dash:
            raise SettingsError(f"{text!r} is not a time window; write it as 20:00-07:00")
        window = cls(time_of_day(start), time_of_day(end))
        if window.start == window.end:
            raise SettingsError(f"window {text} never opens; its start and end must differ")
        return window

    def closes(self, now: datetime) -> datetime | None:
        """Return when the window closes, or None if it is not open at `now`."""
        over_midnight = 1 if self.end <= self.start else 0
        for day in (-1, 0):
            opened = _on_day(now, self.start, day)
            closing = _on_day(now, self.end, day + over_midnight)
            # In UTC: Python compares datetimes of one zone by wall-clock time, where one hour occurs twice each autumn.
            if opened.astimezone(UTC) <= now.astimezone(UTC) < closing.astimezone(UTC):
                return closing
        return None

    def opens(self, now: datetime) -> datetime:
        """Return `now` if the window is open, otherwise when it opens next."""
        return now if self.closes(now) else next_at(self.start, now)

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


def _on_day(now: datetime, moment: time, days: int) -> datetime:
    day = (now + timedelta(days=days)).date()
    wall = datetime.combine(day, moment, tzinfo=now.tzinfo)
    return wall.astimezone(UTC).astimezone(now.tzinfo)  # a time that the clock change skips becomes one that exists
