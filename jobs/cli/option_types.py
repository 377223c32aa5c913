"""What options take beyond click's own types: durations, moments, windows, numbers with an "auto"."""

import re
from datetime import datetime
from typing import Any

import click

from cluster.errors import SettingsError
from cluster.windows import TimeWindow, next_at, seconds_of, time_of_day

TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}")


class GpusPerWorker(click.ParamType[Any]):
    """0, 1 or auto."""

    name = "0|1|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return "auto", 0 or 1."""
        if str(value) not in ("0", "1", "auto"):
            self.fail(f"{value!r} is none of 0, 1, auto", param, ctx)
        return value if value == "auto" else int(value)


class BatchSize(click.ParamType[Any]):
    """A number of images, or auto."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return "auto" or the number."""
        if value != "auto" and not str(value).isdecimal():
            self.fail(f"{value!r} is no number of images, nor auto", param, ctx)
        return value if value == "auto" else int(value)


class Duration(click.ParamType[float]):
    """A duration such as 30m, in seconds."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        try:
            return seconds_of(str(value))
        except SettingsError as error:
            self.fail(str(error), param, ctx)


class Moment(click.ParamType[datetime]):
    """A moment: RFC 3339, or a time of day that comes next."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the moment with its zone; one without is of this machine's."""
        if isinstance(value, datetime):
            return value
        here = datetime.now().astimezone()
        try:
            if TIME_OF_DAY.fullmatch(value):
                return next_at(time_of_day(value), here)
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo else moment.astimezone()
        except (SettingsError, ValueError, OverflowError):
            self.fail(f"{value!r} is no time; write 22:00 or 2026-11-23T22:00", param, ctx)


class WindowOfDay(click.ParamType[str]):
    """A daily span such as 20:00-07:00."""

    name = "HH:MM-HH:MM"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the window as it is written."""
        try:
            return str(TimeWindow.parse(str(value)))
        except SettingsError as error:
            self.fail(str(error), param, ctx)
