"""Types of options beyond click's own: durations, times, windows, sizes, shares, numbers with an "auto"."""

import re
from datetime import datetime
from typing import Any

import click

from cluster.errors import SettingsError
from cluster.windows import TimeWindow, local_now, next_at, resolve, seconds_of, time_of_day, zone_of
from data_shards.errors import SourceError

TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}")


class GpusPerWorker(click.ParamType[Any]):
    """0, 1 or auto."""

    name = "0|1|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return "auto", 0 or 1."""
        if str(value) not in ("0", "1", "auto"):
            self.fail(f"{value!r} is not one of 0, 1, auto", param, ctx)
        return value if value == "auto" else int(value)


class BatchSize(click.ParamType[Any]):
    """A number of images, or auto."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return "auto" or the number."""
        if value != "auto" and not str(value).isdecimal():
            self.fail(f"{value!r} is not a number of images, nor auto", param, ctx)
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


class SplitShares(click.ParamType[str]):
    """Percentages of train, valid and test, such as 70/15/15."""

    name = "T/V/T"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, checked."""
        from data_shards.pack.split import parse_shares  # noqa: PLC0415 -- keeps other commands fast

        try:
            parse_shares(str(value))
        except SourceError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class Moment(click.ParamType[datetime]):
    """A time: RFC 3339, or the next occurrence of a time of day."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time with its zone: that of `TZ`, else the system's, unless the text has an offset."""
        if isinstance(value, datetime):
            return value
        here = local_now()
        try:
            if TIME_OF_DAY.fullmatch(value):
                return next_at(time_of_day(value), here)
            moment = datetime.fromisoformat(value)
            if not moment.tzinfo:
                return resolve(moment, zone_of(None))
            if moment.strftime("%z")[5:]:
                raise ValueError("RFC 3339 has no seconds in an offset")  # job.json could not be read back
            return moment
        except (SettingsError, ValueError, OverflowError):
            self.fail(f"{value!r} is not a time; write 22:00 or 2026-11-23T22:00", param, ctx)


class WindowOfDay(click.ParamType[str]):
    """A daily time window such as 20:00-07:00."""

    name = "HH:MM-HH:MM"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the window in its canonical form."""
        try:
            return str(TimeWindow.parse(str(value)))
        except SettingsError as error:
            self.fail(str(error), param, ctx)


class ByteSize(click.ParamType[int]):
    """A number of bytes written like 64MB or 1GiB."""

    name = "size"
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        number = value.rstrip("BbKkMmGgIi ")
        unit = value[len(number) :].strip().lower()
        try:
            size = int(float(number) * self.units[unit])
        except (KeyError, ValueError, OverflowError):
            self.fail(f"{value!r} is not a size; write 64MB", param, ctx)
        return size if size > 0 else self.fail(f"{value!r} is not greater than 0", param, ctx)


class Share(click.ParamType[float]):
    """A share written like 1% or 0.01."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share, 0 to 1."""
        if isinstance(value, float):
            return value
        try:
            share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is not a share; write 1%", param, ctx)
        return share if 0 <= share <= 1 else self.fail(f"{value!r} is not from 0% to 100%", param, ctx)


class OptionValue(click.ParamType[tuple[str, str]]):
    """An option and its value with = between them."""

    name = "OPTION=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return the name of the option, without dashes, and the text of its value."""
        if isinstance(value, tuple):
            return value[0], value[1]
        option, equals, text = str(value).partition("=")
        if not equals or not option.strip("- "):
            self.fail(f"{value!r} is not an option and a value; write epochs=20", param, ctx)
        return option.strip().removeprefix("--"), text.strip()
