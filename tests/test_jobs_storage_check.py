"""A folder whose share is not mounted takes no run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from cluster.errors import StorageError, UnknownRun
from cluster.settings import Settings
from cluster.storage_marker import MARKER, read_storage_id
from jobs.queue.stack import start_stack
from jobs.queue.storage_check import KEY
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from tests.conftest import Say
from tests.stack import FakeSpec


@pytest.fixture
def share(settings: Settings, tmp_path: Path) -> Settings:
    """A storage apart from the one with the embedded Redis."""
    return Settings(storage=tmp_path / "share", redis_url=settings.redis_url)


@pytest.fixture
def unmounted(share: Settings, tmp_path: Path) -> Settings:
    """A share with a run that is not mounted: an empty folder is in its place."""
    submit(share, FakeSpec())
    share.storage.rename(tmp_path / "away")
    share.storage.mkdir()
    return share


def test_the_first_use_makes_the_storage_known(share: Settings, redis: Redis) -> None:
    submit(share, FakeSpec())

    assert redis.get(KEY) == str(read_storage_id(share.storage)).encode()


def test_a_storage_of_an_earlier_version_with_runs_gets_its_id(share: Settings, redis: Redis) -> None:
    first = submit(share, FakeSpec())
    (share.storage / MARKER).unlink()
    redis.delete(KEY)

    second = submit(share, FakeSpec())

    assert read_storage_id(share.storage) is not None
    assert run_state.all_ids(share.storage) == [first, second]


def test_an_unmounted_share_takes_no_run(unmounted: Settings) -> None:
    with pytest.raises(StorageError, match=f"is not the storage of this queue, .* it has no {MARKER}; mount"):
        submit(unmounted, FakeSpec())

    assert list(unmounted.storage.iterdir()) == []


def test_after_the_share_is_back_runs_are_accepted(share: Settings, tmp_path: Path) -> None:
    first = submit(share, FakeSpec())
    share.storage.rename(tmp_path / "away")
    (tmp_path / "away").rename(share.storage)

    second = submit(share, FakeSpec())

    assert run_state.all_ids(share.storage) == [first, second]


def test_an_emptied_redis_learns_the_id_again(share: Settings, redis: Redis) -> None:
    submit(share, FakeSpec())
    before = redis.get(KEY)
    redis.flushall()

    submit(share, FakeSpec())

    assert redis.get(KEY) == before


def test_doctor_and_a_job_worker_say_that_the_share_is_not_mounted(
    unmounted: Settings, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(unmounted.storage))
    monkeypatch.setattr("cluster.health.FREE_BYTES_LEAST", 0)

    doctor = say("doctor", "--json")
    worker = say("worker", "--burst")

    faults = [check for check in json.loads(doctor[1]) if not check["ok"]]
    assert doctor[0] == 1
    assert [fault["check"] for fault in faults] == ["storage"]
    assert f"it has no {MARKER}" in faults[0]["found"]
    assert worker[0] == 1
    assert "is not the storage of this queue" in worker[2]
    assert list(unmounted.storage.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("schedule", "add", "nightly", "0 20 * * *", "train"),
        ("reconcile",),
        ("list",),
        ("list", "--json"),
        ("list", "--state", "running"),
        ("ui", "--port", "0"),
    ],
    ids=" ".join,
)
def test_no_command_takes_an_unmounted_share_for_an_empty_storage(
    unmounted: Settings, shards: str, say: Say, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(unmounted.storage))

    code, out, err = say(*words, *((shards, "--weights", "none") if "train" in words else ()))

    assert (code, out) == (1, "")
    assert "is not the storage of this queue" in err
    assert list(unmounted.storage.iterdir()) == []


def test_no_command_says_of_a_run_that_it_does_not_exist_while_the_share_is_not_mounted(
    unmounted: Settings, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(unmounted.storage))

    said = [say(*words) for words in (("show", "night"), ("logs", "night"), ("cancel", "night"))]

    cure = "mount the shared storage there, or correct NIGHTSHIFT_STORAGE"
    line = f"Error: no run has the id or name 'night': {unmounted.storage} has no runs at all; {cure}\n"
    assert said == [(1, "", line)] * 3


def test_a_wait_that_begins_while_the_share_is_not_mounted_ends_at_its_timeout(
    unmounted: Settings, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(unmounted.storage))

    code, out, err = say("wait", "night", "--timeout", "1s")

    why = (
        f"no run has the id or name 'night': {unmounted.storage} has no runs at all; mount the shared storage there, "
        "or correct NIGHTSHIFT_STORAGE"
    )
    assert (code, out) == (1, "")
    assert err == (
        f"waiting for the storage, at most 600 s: {why}\n"
        f"stopped waiting, as the storage does not answer ({why}); wait again: nightshift wait night\n"
    )


def test_a_rayjob_that_has_not_started_may_be_the_first_run_of_its_storage(tmp_path: Path) -> None:
    run_id, storage = "train-20260101-000000-aaaaaa", tmp_path / "new"

    with pytest.raises(UnknownRun) as error:
        run_state.find(storage, run_id)

    assert str(error.value) == (
        f"no run has the id or name {run_id!r}: {storage} has no runs at all; mount the shared storage there, or "
        f"correct NIGHTSHIFT_STORAGE; a RayJob is shown once it has started: `kubectl describe rayjob {run_id}`"
    )


def test_a_new_storage_of_a_new_queue_has_no_runs(
    share: Settings, redis: Redis, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(share.storage))
    redis.flushall()

    code, _, err = say("list")

    assert (code, err) == (0, f"no runs in {share.storage}; `nightshift train SHARDS` submits one\n")


def test_a_list_of_a_storage_without_runs_says_that_redis_cannot_be_asked(
    share: Settings, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(share.storage))
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", "redis://127.0.0.1:1/0")

    code, out, err = say("list")

    assert (code, out) == (1, "")
    assert "Redis at redis://127.0.0.1:1 does not answer" in err


def test_a_stack_restarts_nothing_while_its_storage_is_away(settings: Settings, tmp_path: Path) -> None:
    share = replace(settings, storage=tmp_path / "share")
    with start_stack(share, 1, worker_command=(sys.executable, "-c", "")) as stack:
        stack.workers[0].wait()
        away = share.storage.rename(tmp_path / "away")
        share.storage.mkdir()
        stack.restart_ended()
        left, written = stack.workers[0].poll(), list(share.storage.iterdir())
        share.storage.rmdir()
        away.rename(share.storage)
        stack.restart_ended()
        after = stack.workers[0].wait()

    assert (left, written, after) == (0, [], 0)


def test_no_stack_starts_on_an_unmounted_share(unmounted: Settings) -> None:
    with pytest.raises(StorageError, match="is not the storage of this queue"), start_stack(unmounted):
        pass

    assert list(unmounted.storage.iterdir()) == []


@pytest.mark.parametrize("command", [("list",), ("show", "night"), ("reconcile",)], ids=lambda words: words[0])
def test_a_storage_that_is_a_file_or_a_link_to_nothing_is_not_one_without_runs(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "away")

    said = []
    for name in ("file", "link"):
        monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(tmp_path / name))
        said.append(say(*command))

    cure = "is not a folder; mount the storage, or correct NIGHTSHIFT_STORAGE"
    assert said == [(1, "", f"Error: {tmp_path / name} {cure}\n") for name in ("file", "link")]
