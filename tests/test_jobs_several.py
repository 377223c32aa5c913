"""`cancel`, `retry` and `delete` of several runs at once."""

import pytest

from cluster.launch import THIS_MACHINE
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import actions
from jobs.queue.tasks import claim_run
from jobs.runs import state as run_state
from tests.conftest import Say


def submitted(say: Say, settings: Settings, shards: str, name: str) -> RunPaths:
    return RunPaths.of(settings.storage, say("train", shards, "--weights", "none", "--name", name)[1].strip())


def test_several_runs_are_cancelled_retried_and_deleted(say: Say, settings: Settings, shards: str) -> None:
    first, second = (submitted(say, settings, shards, name) for name in ("one", "two"))

    cancelled = say("cancel", "one", second.run_id, "one")
    retried = say("retry", "one", "two")
    say("cancel", "one", "two")
    deleted = say("delete", "one", "two", "--yes")

    assert cancelled == (0, "", f"{first.run_id}: cancelled\n{second.run_id}: cancelled\n")
    assert (retried[0], retried[1]) == (0, f"{first.run_id}\n{second.run_id}\n")
    assert deleted == (0, "", f"{first.run_id} is deleted\n{second.run_id} is deleted\n")
    assert not first.folder.exists()
    assert not second.folder.exists()


def test_one_that_has_ended_does_not_keep_the_others_from_being_cancelled(
    say: Say, settings: Settings, shards: str
) -> None:
    first, second = (submitted(say, settings, shards, name) for name in ("one", "two"))
    say("cancel", "one")

    code, _, err = say("cancel", "one", "two")

    assert code == 1
    assert err == f"Error: {first.run_id} has already ended: it is cancelled\n{second.run_id}: cancelled\n"


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_runs_whose_job_worker_died_are_waited_for_together(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, runs = Clock(), [submitted(say, settings, shards, name) for name in ("one", "two", "three")]
    for paths in runs:
        assert claim_run(paths, "a job worker that died", THIS_MACHINE)
    monkeypatch.setattr(actions, "time", clock)
    monkeypatch.setenv("NIGHTSHIFT_LEASE_SECONDS", "30")

    code, _, err = say("cancel", "one", "two", "three")

    assert (code, err) == (0, "".join(f"{paths.run_id}: cancelled\n" for paths in runs))
    assert 30 < clock.seconds < 31


def test_an_unknown_run_changes_nothing(say: Say, settings: Settings, shards: str) -> None:
    first = submitted(say, settings, shards, "one")

    code, _, err = say("cancel", "one", "nobody")

    assert code == 1
    assert err == "Error: no run has the id or name 'nobody'; `nightshift list` shows them\n"
    assert run_state.read_state(first).state == "queued"


def test_none_of_several_runs_is_deleted_if_one_has_not_ended(say: Say, settings: Settings, shards: str) -> None:
    first, second = (submitted(say, settings, shards, name) for name in ("one", "two"))
    say("cancel", "one")

    code, _, err = say("delete", "one", "two", "--yes")

    assert code == 1
    assert err == f"Error: {second.run_id} is queued; cancel it first: nightshift cancel {second.run_id}\n"
    assert first.folder.exists()
