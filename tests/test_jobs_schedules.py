"""Schedules: each time is served once, whatever dies meanwhile."""

import json
import re
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.files import write_json
from cluster.settings import Settings
from jobs.errors import Refused
from jobs.queue import schedules
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests.conftest import Say
from tests.stack import state_of
from trainer.model.head import HeadConfig
from trainer.specs import SearchSpec, Spec, TrainSpec, build

EVERY_MINUTE = "* * * * *"


def overdue(settings: Settings, by: timedelta = timedelta(minutes=1), *, name: str = "nightly") -> schedules.Schedule:
    """A schedule that was last served a while ago."""
    kept = schedules.add(settings, name, EVERY_MINUTE, TrainSpec(shards="s", weights="none"), JobRequest())
    late = kept.model_copy(update={"served": datetime.now().astimezone() - by})
    schedules._write(schedules._folder(settings, name), late)
    return late


def test_what_is_due_is_submitted_once(settings: Settings) -> None:
    overdue(settings)

    first, second = schedules.submit_due(settings), schedules.submit_due(settings)

    [run_id] = first
    assert second == []
    assert state_of(settings.storage, run_id).state == "queued"
    assert schedules.schedules(settings)[0].last_run == run_id


def test_a_run_of_a_schedule_with_the_longest_name_is_found_by_its_name(settings: Settings) -> None:
    overdue(settings, name="n" * 49)

    [run_id] = schedules.submit_due(settings)

    assert run_state.find(settings.storage, str(state_of(settings.storage, run_id).name)).run_id == run_id


def test_of_several_missed_times_only_the_last_is_served(settings: Settings) -> None:
    overdue(settings, by=timedelta(hours=5))

    assert len(schedules.submit_due(settings)) == 1
    assert schedules.submit_due(settings) == []


def test_a_reconciler_that_died_after_submitting_makes_no_second_run(settings: Settings) -> None:
    late = overdue(settings)
    [run_id] = schedules.submit_due(settings)
    schedules._write(schedules._folder(settings, "nightly"), late)  # as if it had not been written down

    schedules.submit_due(settings)

    assert run_state.all_ids(settings.storage) == [run_id]


def test_a_schedule_that_is_removed_while_it_is_served_does_not_keep_others_from_being_served(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a-removed", "other"):
        overdue(settings, name=name)
    submit = schedules.submit

    def submit_and_remove(settings: Settings, spec: Spec, request: JobRequest) -> str:
        if str(request.name).startswith("a-removed"):
            schedules.remove(settings, "a-removed")
        return submit(settings, spec, request)

    monkeypatch.setattr(schedules, "submit", submit_and_remove)

    [served] = schedules.submit_due(settings)

    assert str(state_of(settings.storage, served).name).startswith("other-")
    assert "schedule a-removed cannot be written: No such file or directory" in caplog.text


def test_what_is_not_due_waits(settings: Settings) -> None:
    schedules.add(settings, "yearly", "0 0 1 1 *", TrainSpec(shards="s"), JobRequest())

    assert schedules.submit_due(settings) == []


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine in a zone with daylight saving: 2026-03-29 02:00 to 03:00, 2026-10-25 03:00 back to 02:00."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("cron", "served", "due"),
    [
        ("0 20 * * *", "2026-03-28T20:00:01+01:00", "2026-03-29T20:00:00+02:00"),  # the clock goes forward
        ("30 2 * * *", "2026-03-28T12:00:00+01:00", "2026-03-29T03:30:00+02:00"),  # there is no 02:30
        ("0 20 * * *", "2026-10-24T20:00:01+02:00", "2026-10-25T20:00:00+01:00"),  # the clock goes back
        ("30 2 * * *", "2026-10-24T12:00:00+02:00", "2026-10-25T02:30:00+02:00"),  # the first 02:30 of two
        ("30 2 * * *", "2026-10-25T02:30:01+02:00", "2026-10-26T02:30:00+01:00"),  # not the second
        ("*/20 * * * *", "2026-10-25T02:20:00+02:00", "2026-10-25T02:40:00+02:00"),  # within the first hour
        ("*/20 * * * *", "2026-10-25T02:40:00+02:00", "2026-10-25T02:00:00+01:00"),  # then comes the second
        ("*/20 * * * *", "2026-10-25T02:10:00+01:00", "2026-10-25T02:20:00+01:00"),  # within it
        ("*/20 * * * *", "2026-10-25T02:40:00+01:00", "2026-10-25T03:00:00+01:00"),
        ("15 * * * *", "2026-10-25T02:15:00+02:00", "2026-10-25T02:15:00+01:00"),
        ("*/20 * * * *", "2026-03-29T01:40:00+01:00", "2026-03-29T03:00:00+02:00"),  # the clock goes forward
        (
            "30 2 * * *",
            "2026-03-29T03:10:00+02:00",
            "2026-03-29T03:30:00+02:00",
        ),  # 02:30 has not come, though 03:10 has
    ],
)
def test_a_schedule_follows_the_wall_clock(berlin: None, cron: str, served: str, due: str) -> None:
    schedule = schedules.Schedule(
        name="nightly", cron=cron, request=JobRequest(), served=datetime.fromisoformat(served)
    )

    assert schedule.due_at().isoformat() == due


@pytest.mark.parametrize(
    ("name", "cron", "why"),
    [
        ("../x", EVERY_MINUTE, "name '../x' is not valid"),
        ("n" * 50, EVERY_MINUTE, "is too long for the names of its runs; use at most 49 characters"),
        ("x", "every night", " is not valid; write minute"),
        ("x", "* * * * * *", " is not valid; write minute"),
    ],
)
def test_a_bad_schedule_is_refused(settings: Settings, name: str, cron: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        schedules.add(settings, name, cron, TrainSpec(shards="s"), JobRequest())


def test_a_list_of_schedules_says_what_each_runs_and_in_which_zone_it_is_due(
    say: Say, shards: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Etc/UTC")
    say("schedule", "add", "nightly", "0 20 * * *", "train", shards, "--weights", "none", "--epochs", "5")

    heading, row, command = say("schedule", "list")[1].splitlines()
    (settings.storage / "schedules" / "nightly" / "spec.json").write_text("{")
    damaged = say("schedule", "list")[1].splitlines()[2]
    (settings.storage / "schedules" / "nightly" / "spec.json").write_text(
        json.dumps(TrainSpec(shards=shards).to_json() | {"brand_new": 3})
    )
    code, out, _ = say("schedule", "list")

    assert heading.split() == ["NAME", "CRON", "NEXT", "LAST", "RUN"]
    assert re.fullmatch(r"nightly  0 20 \* \* \*  \d{4}-\d\d-\d\d 20:00 UTC  -", row)
    assert command == f"  nightshift train {shlex.quote(shards)} --weights none --epochs 5"
    assert damaged.endswith("spec.json cannot be read: line 1 is not JSON")
    assert (code, out.splitlines()[2][:50]) == (0, "  nightly: 'brand_new' is not an option of nightsh")


def test_a_cron_line_without_quotes_is_told_to_have_some(say: Say, shards: str) -> None:
    said = say("schedule", "add", "nightly", "0", "20", "*", "*", "*", "train", shards)

    assert said == (
        2, "", "Error: cron line '0' is not valid; write minute, hour, day, month, weekday, in quotes: '0 20 * * 1-5'\n"
    )  # fmt: skip


def test_a_schedule_is_added_listed_and_removed_by_people(say: Say, shards: str, settings: Settings) -> None:
    added = say("schedule", "add", "nightly", "0 20 * * 1-5", "train", shards, "--weights", "none", "--priority", "low")
    twice = say("schedule", "add", "nightly", "0 20 * * *", "train", shards, "--weights", "none")
    listed = json.loads(say("schedule", "list", "--json")[1])
    removed = say("schedule", "remove", "nightly")

    assert added[0] == 0
    assert added[2].startswith("nightly is due next at ")
    assert twice[::2] == (1, "Error: schedule 'nightly' exists; remove it first\n")
    assert [(each["name"], each["cron"], each["request"]["priority"]) for each in listed] == [
        ("nightly", "0 20 * * 1-5", "low")
    ]
    assert removed[0] == 0
    assert run_state.all_ids(settings.storage) == []
    assert say("schedule", "list", "--json")[1] == "[]\n"


@pytest.mark.parametrize(
    ("cron", "options", "request_", "says"),
    [
        ("0 0 30 2 *", {}, {}, "has a date that never occurs"),
        (EVERY_MINUTE, {"until": "2099-01-01T07:00:00Z"}, {}, "--until is a single time"),
        (EVERY_MINUTE, {}, {"notify": "http://nowhere.example/x"}, "may not send to nowhere.example"),
    ],
)
def test_what_could_never_be_submitted_is_refused_at_once(
    settings: Settings, cron: str, options: dict[str, str], request_: dict[str, str], says: str
) -> None:
    spec = build(SearchSpec if options else TrainSpec, shards="s", weights="none", **options)

    with pytest.raises(Refused, match=says):
        schedules.add(settings, "nightly", cron, spec, JobRequest(**request_))

    assert schedules.schedules(settings) == []


@pytest.mark.parametrize(
    "command",
    [
        ("train", "{shards}", "--weights", "none", "--wait"),
        ("train", "{shards}", "--weights", "none", "--dry-run"),
        ("predict", "{model}", "{shards}", "--now"),
    ],
)
def test_an_option_that_does_something_at_once_cannot_be_scheduled(
    say: Say, shards: str, settings: Settings, tmp_path: Path, command: tuple[str, ...]
) -> None:
    head = HeadConfig(classes=("a", "b"), width=8, dropout=0.1, image_size=32)
    write_json(tmp_path / "head.json", head.to_json())
    words = [word.format(shards=shards, model=tmp_path) for word in command]

    got = say("schedule", "add", "nightly", EVERY_MINUTE, *words)

    assert got == (2, "", f"Error: {command[-1]} is for a command that runs at once; leave it out here\n")
    assert schedules.schedules(settings) == []


def test_a_scheduled_evaluation_waits_for_the_training_of_its_model(say: Say, shards: str, settings: Settings) -> None:
    trained = say("train", shards, "--weights", "none")[1].strip()

    added = say("schedule", "add", "nightly", EVERY_MINUTE, "evaluate", trained, shards)

    assert added[0] == 0
    assert [each.request.after for each in schedules.schedules(settings)] == [(trained,)]


@pytest.mark.parametrize("zone", ["CET-1CEST,M3.5.0,M10.5.0/3", "Europe/Berlin"])
def test_a_schedule_without_fixed_times_runs_in_both_hours_of_an_hour_that_occurs_twice(
    settings: Settings, berlin: None, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    added = schedules.add(settings, "often", "*/20 * * * *", TrainSpec(shards="s", weights="none"), JobRequest())
    start = datetime.fromisoformat("2026-10-25T01:45:00+02:00")
    schedules._write(schedules._folder(settings, "often"), added.model_copy(update={"served": start}))

    names = []
    for minutes in range(0, 150, 5):  # the job worker looks from 01:45 to 03:10
        now = (start + timedelta(minutes=minutes)).astimezone(UTC).astimezone(schedules.zone_of(added.timezone))
        monkeypatch.setattr(schedules, "local_now", lambda _zone=None, now=now: now)
        names += [state_of(settings.storage, run_id).name for run_id in schedules.submit_due(settings)]

    assert [str(name).removeprefix("often-20261025") for name in names] == [
        "-0200", "-0220", "-0240", "b0200", "b0220", "b0240", "-0300",
    ]  # fmt: skip


def test_a_served_time_in_the_future_is_not_believed(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    in_the_future = overdue(settings, by=timedelta(days=-4 * 365))

    repaired = schedules.submit_due(settings)
    after = schedules.schedules(settings)[0]
    schedules._write(
        schedules._folder(settings, "nightly"), after.model_copy(update={"served": after.served - timedelta(minutes=1)})
    )
    a_minute_later = schedules.submit_due(settings)

    assert repaired == []
    assert after.served <= datetime.now().astimezone() < in_the_future.served
    assert "which is in the future: some clock was wrong" in caplog.text
    assert len(a_minute_later) == 1


def test_a_schedule_keeps_the_time_zone_in_which_it_was_added(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/Havana")
    schedules.add(settings, "nightly", "0 20 * * *", TrainSpec(shards="s", weights="none"), JobRequest())
    monkeypatch.setenv("TZ", "UTC")

    [kept] = schedules.schedules(settings)

    assert kept.timezone == "America/Havana"
    assert (kept.due_at().hour, str(kept.due_at().tzinfo)) == (20, "America/Havana")


@pytest.mark.parametrize("zone", ["CET-1CEST,M3.5.0,M10.5.0/3", "Europe/Berlin"])
@pytest.mark.parametrize(
    ("served", "now", "names"),
    [
        # Missed at 02:30, and looked for in the second hour from 02:00, before its second 02:30.
        ("2026-10-24T12:00:00+02:00", "2026-10-25T02:10:00+01:00", ["nightly-20261025-0230"]),
        ("2026-10-24T12:00:00+02:00", "2026-10-25T02:40:00+01:00", ["nightly-20261025-0230"]),
        ("2026-10-25T02:30:01+02:00", "2026-10-25T02:40:00+01:00", []),
        ("2026-03-28T12:00:00+01:00", "2026-03-29T03:10:00+02:00", []),  # there is no 02:30: it is due at 03:30
        ("2026-03-27T12:00:00+01:00", "2026-03-29T03:10:00+02:00", ["nightly-20260328-0230"]),
        ("2026-03-28T12:00:00+01:00", "2026-03-29T03:30:00+02:00", ["nightly-20260329-0230"]),
    ],
)
def test_a_time_that_was_missed_at_a_change_of_the_clock_is_served(  # noqa: PLR0917
    settings: Settings,
    berlin: None,
    monkeypatch: pytest.MonkeyPatch,
    zone: str,
    served: str,
    now: str,
    names: list[str],
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    added = schedules.add(settings, "nightly", "30 2 * * *", TrainSpec(shards="s", weights="none"), JobRequest())
    schedules._write(
        schedules._folder(settings, "nightly"), added.model_copy(update={"served": datetime.fromisoformat(served)})
    )
    moment = datetime.fromisoformat(now).astimezone(schedules.zone_of(added.timezone))
    monkeypatch.setattr(schedules, "local_now", lambda _zone=None: moment)

    first, second = schedules.submit_due(settings), schedules.submit_due(settings)

    assert [state_of(settings.storage, run_id).name for run_id in first] == names
    assert second == []
