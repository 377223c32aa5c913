"""Durations (`30m`), times of day (`07:00`) and time windows (`20:00-07:00`), and the time zone that they are in.

All results are aware datetimes. Times of day are wall-clock times in the time zone of the `now` that is passed, so a
window opens at 20:00 on the wall clock on both sides of a daylight saving change. A time that the change skips is
moved forward by as much as the clock; a time that occurs twice means the first occurrence.

`datetime.now().astimezone()` must not be passed as `now`: its zone is a fixed offset. `local_now()` has the zone.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cluster.errors import SettingsError
from cluster.settings import time_zone_setting

LOCALTIME = Path("/etc/localtime")
LONGEST_DAYS = 36_500  # a date that far away can still be computed

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_POSIX_ZONE = re.compile(r"(<[^>]+>|[A-Za-z]{3,})[-+]?\d.*")  # such as CET-1CEST,M3.5.0,M10.5.0/3
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration such as `90s`, `30m`, `8h` or `2d`.

    Raises:
        SettingsError: The text is not a duration, or it is zero or longer than `LONGEST_DAYS`.
    """
    match = _DURATION.fullmatch(duration.strip())
    if not match or float(match[1]) == 0:
        raise SettingsError(f"{duration!r} is not a duration; write 30m, 8h or 2d")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > LONGEST_DAYS * _SECONDS["d"]:
        raise SettingsError(f"{duration!r} is longer than {LONGEST_DAYS} days; write 30m, 8h or 2d")
    return seconds


def time_of_day(text: str) -> time:
    """Return the time of day that `HH:MM` means.

    Raises:
        SettingsError: The text is not a time of day.
    """
    try:
        return datetime.strptime(text.strip(), "%H:%M").time()
    except ValueError as error:
        raise SettingsError(f"{text!r} is not a time of day; write it as 07:00") from error


class SystemZone(tzinfo):
    """The time zone of the C library, for a zone without an IANA name."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        """Return the offset of a wall-clock time."""
        return None if moment is None else moment.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, _moment: datetime | None) -> timedelta | None:
        """Return None: the share of daylight saving is unknown."""
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        """Return the zone's abbreviation at a wall-clock time."""
        return None if moment is None else moment.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, moment: datetime) -> datetime:
        """Return the wall-clock time of a moment in UTC."""
        local = moment.replace(tzinfo=UTC).astimezone(None)
        wall_clock = local.replace(tzinfo=self)
        is_second = wall_clock.utcoffset() != local.utcoffset()  # of the two moments at which it shows this time
        return wall_clock.replace(fold=int(is_second))


def local_zone_name() -> str | None:
    """Return the IANA name of the time zone: that of `TZ`, else the system's; None if it has no such name.

    Raises:
        SettingsError: `TZ` is not a time zone.
    """
    if (setting := time_zone_setting()) is not None:
        if _has_data(setting):
            return setting
        if _POSIX_ZONE.fullmatch(setting):
            return None
        raise SettingsError(f"TZ {setting!r} is not a time zone; write an IANA name such as Europe/Berlin")
    if not LOCALTIME.is_symlink():
        return None
    _, found, name = str(LOCALTIME.resolve()).partition("zoneinfo/")
    return name if found and _has_data(name) else None


def zone_of(name: str | None) -> tzinfo:
    """Return the time zone of an IANA name; None means the zone of this process: `TZ`, else the system's.

    Raises:
        SettingsError: There is no such time zone.
    """
    name = name or local_zone_name()
    if name is None:
        return SystemZone()
    if not _has_data(name):
        raise SettingsError(f"time zone {name!r} is unknown; write an IANA name such as Europe/Berlin")
    return ZoneInfo(name)


def local_now(zone_name: str | None = None) -> datetime:
    """Return the current time in a time zone; see `zone_of`."""
    return datetime.now(zone_of(zone_name))


def resolve(wall_clock: datetime, zone: tzinfo) -> datetime:
    """Return the moment at which the wall clock of a zone shows a time."""
    return wall_clock.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)  # a skipped time becomes one that exists


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
    return resolve(datetime.combine(day, moment), now.tzinfo or UTC)


def _has_data(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
