"""The run folders are the truth: whatever happens to Redis, every run is queued, started and finalized."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis import Redis

from cluster.errors import StorageError
from cluster.files import locked, write_json
from cluster.launch import THIS_MACHINE
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.kubernetes.standalone import prepare_run
from jobs.queue import actions
from jobs.queue.queues import queue, waiting
from jobs.queue.reconciler import ReconcilerMemory, Repair, reconcile
from jobs.queue.submit import new_run_id, submit
from jobs.queue.tasks import claim_run
from jobs.runs import deletion
from jobs.runs import state as run_state
from jobs.runs.outcomes import Change, end
from jobs.runs.request import JobRequest
from tests.stack import FakeSpec, eventually, finish, state_of, take_next
from trainer.specs import TrainSpec, build


def brisk(settings: Settings) -> Settings:
    """Settings under which an attempt is dead after a second."""
    return replace(settings, lease_seconds=1.0)


def claimed_run(
    settings: Settings, redis: Redis, worker: str = "a worker that dies", place: str = THIS_MACHINE
) -> RunPaths:
    """A run that a job worker has taken from its queue and claimed."""
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    take_next(redis)
    claim_run(paths, worker, place)
    return paths


def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The reconciler's clock, whose `seconds` a test sets."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("jobs.queue.reconciler.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def test_a_redis_that_was_emptied_is_filled_again(settings: Settings, redis: Redis) -> None:
    runs = [submit(settings, FakeSpec()) for _ in range(3)]
    urgent = submit(settings, FakeSpec(), JobRequest(priority="high"))
    redis.flushall()

    repairs = reconcile(settings, redis, ReconcilerMemory())

    assert waiting(redis, "normal") == runs
    assert waiting(redis, "high") == [urgent]
    assert sorted(repair.run_id for repair in repairs) == sorted([*runs, urgent])
    assert reconcile(settings, redis, ReconcilerMemory()) == []


def test_a_run_whose_marker_was_lost_is_found_by_looking_at_every_run(settings: Settings, redis: Redis) -> None:
    run_id = submit(settings, FakeSpec())
    redis.flushall()
    run_state.pending_marker(RunPaths.of(settings.storage, run_id)).unlink()

    assert reconcile(settings, redis, ReconcilerMemory()) == []
    assert reconcile(settings, redis, ReconcilerMemory(), every_run=True) == [Repair(run_id, "put into its queue")]


def test_an_attempt_whose_heartbeat_stops_is_lost_and_the_next_is_queued(settings: Settings, redis: Redis) -> None:
    paths = claimed_run(settings, redis)
    run_id = paths.run_id
    paths.log.write_text("half a line")
    memory = ReconcilerMemory()

    assert eventually(lambda: bool(reconcile(brisk(settings), redis, memory)))

    state = state_of(settings.storage, run_id)
    assert (state.state, state.losses) == ("queued", 1)
    assert state.why == "attempt 1 was lost (no heartbeat for 1 s); the next goes on from its checkpoint"
    half, warning = paths.log.read_text().splitlines()
    assert half == "half a line"
    assert warning.endswith(f" WARNING {state.why}")
    assert waiting(redis, "normal") == [run_id]


def test_an_attempt_that_sends_heartbeats_keeps_running_whatever_its_clock_says(
    settings: Settings, redis: Redis
) -> None:
    run_id = submit(settings, FakeSpec())
    take_next(redis)
    paths = RunPaths.of(settings.storage, run_id)
    claimed = claim_run(paths, "a worker five minutes off", THIS_MACHINE)
    assert claimed is not None
    memory, until = ReconcilerMemory(), datetime.now() + timedelta(seconds=2.5)

    while datetime.now() < until:
        write_json(paths.attempts / "1.json", {"attempt": 1, "beat": datetime.now().isoformat(), "host": "x", "pid": 1})
        assert reconcile(brisk(settings), redis, memory) == []

    assert state_of(settings.storage, run_id).state == "running"


def test_time_in_which_nobody_looked_does_not_count_against_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, clock = ReconcilerMemory(), iter([0.0, 2.0, 62.0, 64.0, 66.0])
    monkeypatch.setattr("jobs.queue.reconciler.time", SimpleNamespace(monotonic=lambda: next(clock)))

    seconds = [memory.seconds_unchanged(memory.heartbeats, "run", 1) for _ in range(4)]
    changed = memory.seconds_unchanged(memory.heartbeats, "run", 2)

    assert seconds == [0.0, 2.0, 12.0, 14.0]
    assert changed == 0.0


def test_an_attempt_whose_job_worker_cannot_be_released_is_dead_after_a_lease_longer_than_the_tries(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "LOCK_SECONDS", 0.05)
    clock = stopped_clock(monkeypatch)
    paths = claimed_run(settings, redis, "a worker that is gone", "ray")
    memory, patient = ReconcilerMemory(), replace(settings, lease_seconds=120.0)

    with locked(paths.lock):  # as a process that was stopped inside it
        while clock.seconds < patient.lease_seconds:
            reconcile(patient, redis, memory)
            clock.seconds += 10.0
    reconcile(patient, redis, memory)

    assert state_of(settings.storage, paths.run_id).why == (
        "attempt 1 was lost (no heartbeat for 120 s); the next goes on from its checkpoint"
    )
    assert list(memory.warnings) == [paths.run_id]


def test_an_attempt_without_heartbeats_is_dead_as_soon_as_the_lock_of_its_run_is_free(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "LOCK_SECONDS", 0.05)
    clock = stopped_clock(monkeypatch)
    paths, memory = claimed_run(settings, redis), ReconcilerMemory()

    with locked(paths.lock):  # as a process that was stopped inside it
        while not memory.warnings:  # until it should be marked dead and cannot be
            reconcile(settings, redis, memory)
            clock.seconds += 10.0
    reconcile(settings, redis, memory)

    assert state_of(settings.storage, paths.run_id).state == "queued"


def test_an_attempt_is_watched_anew_after_its_storage_could_not_be_read(
    settings: Settings, redis: Redis, tmp_path: Path
) -> None:
    share = replace(settings, storage=tmp_path / "share")
    run_id = submit(share, FakeSpec())
    paths = RunPaths.of(share.storage, run_id)
    claim_run(paths, "a worker that waits", THIS_MACHINE)
    memory = ReconcilerMemory()
    reconcile(share, redis, memory)
    before = memory.runs()

    away = share.storage.rename(tmp_path / "away")
    share.storage.mkdir()
    reconcile(share, redis, memory)
    during, written = memory.runs(), list(share.storage.iterdir())
    share.storage.rmdir()
    away.rename(share.storage)

    assert (before, during, written) == ({run_id}, set(), [])
    assert list(memory.warnings.values()) == [
        f"the storage {share.storage} cannot be read: {share.storage}/runs does not exist; mount the share again, or "
        "look at its server"
    ]
    assert reconcile(share, redis, memory) == []


def test_a_run_whose_retries_are_spent_is_lost(settings: Settings, redis: Redis) -> None:
    run_id = submit(settings, FakeSpec(), JobRequest(retries=0))
    take_next(redis)
    claim_run(RunPaths.of(settings.storage, run_id), "a worker that dies", THIS_MACHINE)
    memory = ReconcilerMemory()

    assert eventually(
        lambda: bool(reconcile(brisk(settings), redis, memory)) and state_of(settings.storage, run_id).has_ended, 15
    )

    state = state_of(settings.storage, run_id)
    assert (state.state, state.why) == (
        "lost", "no heartbeat for 1 s; no retry was asked for, `nightshift retry` tries again",
    )  # fmt: skip
    assert waiting(redis, "normal") == []


def test_an_attempt_that_published_before_it_died_has_succeeded(settings: Settings, redis: Redis) -> None:
    paths = claimed_run(settings, redis)
    write_json(paths.result, {"metrics": {"accuracy": 1.0}})
    memory = ReconcilerMemory()

    assert eventually(
        lambda: bool(reconcile(brisk(settings), redis, memory)) and state_of(settings.storage, paths.run_id).has_ended,
        15,
    )

    assert state_of(settings.storage, paths.run_id).state == "succeeded"


def test_an_older_attempt_that_comes_back_can_change_nothing(settings: Settings, redis: Redis) -> None:
    run_id = submit(settings, FakeSpec())
    take_next(redis)
    paths = RunPaths.of(settings.storage, run_id)
    first = claim_run(paths, "frozen", THIS_MACHINE)
    memory = ReconcilerMemory()
    assert eventually(lambda: bool(reconcile(brisk(settings), redis, memory)))
    second = claim_run(paths, "lively", THIS_MACHINE)
    assert first is not None
    assert second is not None

    end(paths, first.lease, Change("failed", "the older one's view"))

    state = state_of(settings.storage, run_id)
    assert (state.state, state.attempt, state.job_worker) == ("running", 2, "lively")
    second.lease.check()
    Lease.join(paths, 2).check()


def test_a_run_with_a_cluster_of_its_own_is_queued_only_when_a_person_retries_it(
    settings: Settings, redis: Redis, tmp_path: Path
) -> None:
    run_id = new_run_id("train")
    write_json(tmp_path / "spec.json", build(TrainSpec, shards="/s", weights="none").to_json())
    write_json(tmp_path / "job.json", JobRequest(retries=0).to_json())
    paths = prepare_run(settings, run_id, tmp_path)
    memory, brisk_settings = ReconcilerMemory(), brisk(settings)

    before = reconcile(settings, redis, memory)
    assert claim_run(paths, "RayJob", THIS_MACHINE)
    assert eventually(lambda: bool(reconcile(brisk_settings, redis, memory)))  # its cluster sends no heartbeat
    after = waiting(redis, "normal")
    actions.retry(settings, paths)

    assert (before, after) == ([], [])
    assert waiting(redis, "normal") == [run_id]


def test_a_run_that_was_taken_and_never_started_is_queued_again(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.queue.reconciler.STUCK_SECONDS", 0.5)
    run_id = submit(settings, FakeSpec())
    assert queue(redis, "normal").next_entry() is not None
    memory = ReconcilerMemory()

    first = reconcile(settings, redis, memory)
    put_back = eventually(lambda: bool(reconcile(settings, redis, memory)))

    assert first == []
    assert put_back
    assert waiting(redis, "normal") == [run_id]
    assert redis.llen("rq:queue:nightshift-normal:intermediate") == 0


def test_runs_that_ended_or_were_deleted_are_forgotten(settings: Settings, redis: Redis) -> None:
    unstarted, unwatched, deleted = (submit(settings, FakeSpec()) for _ in range(3))
    for run_id, place in ((unwatched, "ray"), (deleted, THIS_MACHINE)):
        redis.lrem(queue(redis, "normal").key, 1, run_id)
        assert claim_run(RunPaths.of(settings.storage, run_id), "a worker that is gone", place)
    assert queue(redis, "normal").next_entry() is not None
    memory = ReconcilerMemory()
    reconcile(settings, redis, memory)
    remembered = memory.runs()

    for run_id in (unstarted, unwatched, deleted):
        finish(settings, run_id, "succeeded")
    deletion.hide(RunPaths.of(settings.storage, deleted))
    reconcile(settings, redis, memory)

    assert remembered == {unstarted, unwatched, deleted}
    assert memory.runs() == set()


def test_a_cancelled_run_leaves_the_queue_and_stays_out(settings: Settings, redis: Redis) -> None:
    run_id = submit(settings, FakeSpec())

    actions.cancel(settings, RunPaths.of(settings.storage, run_id))

    assert waiting(redis, "normal") == []
    assert reconcile(settings, redis, ReconcilerMemory(), every_run=True) == []


def test_only_runs_that_have_not_ended_are_pending(settings: Settings) -> None:
    first, second = submit(settings, FakeSpec()), submit(settings, FakeSpec())

    finish(settings, first, "succeeded")

    assert run_state.pending_ids(settings.storage) == [second]
    assert json.loads(RunPaths.of(settings.storage, first).state.read_text())["ended"].endswith("Z")


def test_leftovers_of_killed_submits_and_deletes_are_deleted_after_a_day(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = submit(settings, FakeSpec())
    folder = settings.storage / "runs"
    for leftover in (".new-train-20261123-000000-aaaaaa", ".deleted-train-20261123-000000-bbbbbb"):
        (folder / leftover).mkdir()

    deletion.sweep(settings.storage)
    young = len(list(folder.iterdir()))
    monkeypatch.setattr(deletion, "LEFTOVER_SECONDS", -1.0)
    deletion.sweep(settings.storage)

    assert young == 3
    assert [entry.name for entry in folder.iterdir()] == [run_id]


@pytest.mark.parametrize(
    "content",
    [[], {"state": "queued"}, {"id": "a", "kind": "train", "state": "odd", "created": ""}]
    + [{"id": "a", "kind": "train", "state": "queued", "created": "", key: "x"} for key in ("attempt", "metric")],
)
def test_a_damaged_state_is_reported_in_one_line(settings: Settings, content: object) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    paths.state.write_text(json.dumps(content))

    with pytest.raises(StorageError, match=rf"^{paths.state} is damaged: [^\n]+$"):
        run_state.read_state(paths)


@pytest.mark.parametrize("name", ["state.json", "job.json"])
def test_a_damaged_run_does_not_keep_others_from_being_queued(
    settings: Settings, redis: Redis, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = submit(settings, FakeSpec(), JobRequest(at=datetime.now(UTC) + timedelta(hours=1)))
    sound = submit(settings, FakeSpec())
    (RunPaths.of(settings.storage, damaged).folder / name).write_text('{"state": 7, "retries": "many"}')
    redis.flushall()

    memory = ReconcilerMemory()
    reconcile(settings, redis, memory)
    reconcile(settings, redis, memory)

    assert waiting(redis, "normal") == [sound]
    assert caplog.text.count(f"{damaged} is skipped: ") == 1
