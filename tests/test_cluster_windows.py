from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import SettingsError
from cluster.windows import TimeWindow, next_at, seconds_of

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = TimeWindow.parse("20:00-07:00")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("8h", 28800), ("2d", 172800), ("1.5h", 5400)]
)
def test_a_duration_reads_as_seconds(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "8 hours", "-1h", "0m", "h"])
def test_what_is_no_duration_is_refused_with_the_forms_that_are(text):
    with pytest.raises(SettingsError, match="write 30m, 8h or 2d"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["20:00", "20-7", "25:00-07:00", "20:00-20:00", ""])
def test_a_window_that_never_opens_or_is_none_is_refused(text):
    with pytest.raises(SettingsError):
        TimeWindow.parse(text)


def test_a_night_is_open_on_both_sides_of_midnight():
    evening = datetime(2026, 11, 23, 22, 0, tzinfo=BERLIN)
    morning = datetime(2026, 11, 24, 6, 59, tzinfo=BERLIN)

    assert NIGHT.closes(evening) == NIGHT.closes(morning) == datetime(2026, 11, 24, 7, 0, tzinfo=BERLIN)


def test_a_shut_window_opens_at_its_start_the_same_day():
    noon = datetime(2026, 11, 23, 12, 0, tzinfo=BERLIN)

    assert NIGHT.closes(noon) is None
    assert NIGHT.opens(noon) == datetime(2026, 11, 23, 20, 0, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("evening", "hours"),
    [
        (datetime(2026, 3, 28, 20, 0, tzinfo=BERLIN), 10),  # clocks go forward: an hour less
        (datetime(2026, 10, 24, 20, 0, tzinfo=BERLIN), 12),  # clocks go back: an hour more
        (datetime(2026, 11, 23, 20, 0, tzinfo=BERLIN), 11),
    ],
)
def test_a_night_of_a_clock_change_ends_at_seven_by_the_wall_clock(evening, hours):
    closing = NIGHT.closes(evening)

    assert closing is not None
    assert (closing.hour, closing.minute) == (7, 0)
    assert closing.astimezone(UTC) - evening.astimezone(UTC) == timedelta(hours=hours)


def test_a_wall_time_that_the_clock_skips_still_comes():
    before = datetime(2026, 3, 29, 1, 0, tzinfo=BERLIN)

    assert next_at(time(2, 30), before).astimezone(UTC) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


def test_a_window_that_ends_in_the_hour_that_comes_twice_is_shut_the_second_time():
    window = TimeWindow.parse("20:00-02:45")
    first = datetime(2026, 10, 25, 2, 30, fold=0, tzinfo=BERLIN)
    second = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)

    assert window.closes(first) is not None
    assert window.closes(second) is None


@given(st.datetimes(min_value=datetime(2025, 1, 1), max_value=datetime(2028, 1, 1)))
def test_a_window_is_open_or_opens_within_a_day_and_an_hour(moment):
    now = moment.replace(tzinfo=UTC).astimezone(BERLIN)

    opens = NIGHT.opens(now)

    assert timedelta(0) <= opens.astimezone(UTC) - now.astimezone(UTC) <= timedelta(hours=25)
    assert NIGHT.closes(opens) is not None
