from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from trainer.search.deadline import Deadline, seconds_of_trial
from trainer.search.trials import TrialTable
from trainer.specs import SearchSpec, build

NOW = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)


def search(**options):
    return build(SearchSpec, shards="shards", **options)


def table_of(*seconds):
    table = TrialTable("loss")
    for number, length in enumerate(seconds):
        table.add({"event": "started", "trial": number, "config": {}})
        for epoch in (1, 2):
            table.add({"event": "epoch", "trial": number, "epoch": epoch, "value": 1.0, "seconds": length})
    return table


def test_a_search_without_limits_never_ends_by_the_clock():
    deadline = Deadline.of(search(), began=NOW, now=NOW)

    assert not deadline.is_over(NOW + timedelta(days=10_000))
    assert deadline.has_room_for(1e12, NOW)


def test_the_earliest_limit_is_the_deadline():
    spec = search(until=NOW + timedelta(hours=9), max_duration_seconds=8 * 3600, window="20:00-07:00", timezone="UTC")

    deadline = Deadline.of(spec, began=NOW, now=NOW)

    assert (deadline.ends, deadline.why) == (NOW + timedelta(hours=8), "max_duration")


def test_a_retry_does_not_restart_the_maximum_duration():
    spec = search(max_duration_seconds=3600)

    deadline = Deadline.of(spec, began=NOW, now=NOW + timedelta(minutes=50))

    assert deadline.ends == NOW + timedelta(hours=1)


def test_a_window_closes_by_the_wall_clock_when_clocks_are_set_back_within_it():
    spec = search(window="20:00-07:00", timezone="Europe/Berlin")
    evening = datetime(2026, 10, 24, 20, 30, tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)

    deadline = Deadline.of(spec, began=evening, now=evening)

    assert deadline.ends == datetime(2026, 10, 25, 6, 0, tzinfo=UTC)  # 07:00 in winter time: eleven and a half hours on


def test_the_deadline_is_over_while_the_window_is_closed():
    spec = search(window="20:00-07:00", timezone="UTC")
    noon = NOW.replace(hour=12)

    assert Deadline.of(spec, began=noon, now=noon).is_over(noon)


def test_no_trial_starts_that_cannot_end_by_the_slowest_trial_so_far():
    deadline = Deadline.of(search(until=NOW + timedelta(minutes=10)), began=NOW, now=NOW)
    quick, slow = table_of(1, 2), table_of(1, 30)

    assert deadline.has_room_for(seconds_of_trial(quick, epochs=20), NOW)
    assert not deadline.has_room_for(seconds_of_trial(slow, epochs=20), NOW)


def test_a_paused_trial_needs_only_the_time_of_its_other_epochs():
    assert seconds_of_trial(table_of(4), epochs=20, done=20) == 0
    assert seconds_of_trial(table_of(4), epochs=20, done=10) == 50
    assert seconds_of_trial(TrialTable("loss"), epochs=20) == 0
