import time as time_module
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import windows
from cluster.errors import SettingsError
from cluster.windows import (
    SystemZone,
    TimeWindow,
    local_now,
    local_zone_name,
    next_at,
    resolve,
    seconds_of,
    zone_of,
)  # fmt: skip

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = TimeWindow.parse("20:00-07:00")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("8h", 28800), ("2d", 172800), ("1.5h", 5400)]
)
def test_a_duration_reads_as_seconds(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "8 hours", "-1h", "0m", "h", "36501d", "9" * 400 + "s"])
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


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch):
    """Set the time zone of this process."""

    def put(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time_module.tzset()

    yield put
    monkeypatch.undo()
    time_module.tzset()


@pytest.mark.parametrize("name", ["Europe/Berlin", ":Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"])
@pytest.mark.parametrize(
    ("evening", "morning"),
    [
        ("2026-10-24T20:00:00+00:00", "2026-10-25T08:00:00+01:00"),
        ("2027-03-27T21:00:00+00:00", "2027-03-28T08:00:00+02:00"),
    ],
)
def test_a_morning_after_a_clock_change_has_the_offset_of_that_morning(zone, name, evening, morning):
    zone(name)
    now = datetime.fromisoformat(evening).astimezone(zone_of(None))

    assert next_at(time(8), now).isoformat() == morning


@pytest.mark.parametrize(
    ("setting", "name"),
    [("Europe/Berlin", "Europe/Berlin"), (":UTC", "UTC"), ("", "UTC"), ("CET-1CEST,M3.5.0,M10.5.0/3", None)],
)
def test_the_zone_is_that_of_tz(zone, setting, name):
    zone(setting)

    assert local_zone_name() == name


def test_the_zone_is_the_systems_where_tz_is_not_set(monkeypatch, tmp_path):
    link = tmp_path / "localtime"
    link.symlink_to("/usr/share/zoneinfo/Asia/Tokyo")
    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.setattr(windows, "LOCALTIME", link)

    assert local_zone_name() == "Asia/Tokyo"
    assert local_now().utcoffset() == timedelta(hours=9)


@pytest.mark.parametrize("name", ["Mars", "../etc/passwd", "Europe"])
def test_a_tz_that_is_not_a_zone_is_refused_instead_of_taken_for_utc(zone, name):
    zone(name)

    with pytest.raises(SettingsError, match=f"TZ '{name}' is not a time zone; write an IANA name"):
        local_now()


@given(st.datetimes(min_value=datetime(2025, 1, 1), max_value=datetime(2028, 1, 1)))
def test_a_zone_without_a_name_agrees_with_the_named_one(moment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time_module.tzset()
        local = moment.replace(tzinfo=UTC).astimezone(SystemZone())
        found = (local.replace(tzinfo=None), local.utcoffset())
        resolved = resolve(moment, SystemZone()).astimezone(UTC)
    time_module.tzset()

    expected = moment.replace(tzinfo=UTC).astimezone(BERLIN)
    assert found == (expected.replace(tzinfo=None), expected.utcoffset())
    assert resolved == resolve(moment, BERLIN).astimezone(UTC)
