"""A stopped process that holds a lock delays only what needs it."""

import contextlib
from datetime import timedelta

import pytest
from redis import Redis

from cluster import files
from cluster.errors import StorageError
from cluster.files import locked
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.stop_request import StopRequest
from jobs.queue import reconciler, schedules
from jobs.queue.reconciler import ReconcilerMemory, reconcile
from jobs.queue.submit import submit
from jobs.runs import names
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests.stack import FakeSpec, state_of
from trainer.specs import TrainSpec


def test_a_stopped_process_that_holds_a_lock_delays_only_its_own_run(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "LOCK_SECONDS", 0.05)
    locked_run, other = (RunPaths.of(settings.storage, submit(settings, FakeSpec())) for _ in range(2))
    for paths in (locked_run, other):
        with run_state.changing(paths) as state:
            run_state.write_state(paths, state.with_state("paused"))

    with locked(locked_run.lock):  # as a process that was stopped inside it
        reconcile(settings, redis, ReconcilerMemory())

    assert (state_of(settings.storage, locked_run.run_id).state, state_of(settings.storage, other.run_id).state) == (
        "paused",
        "queued",
    )


def test_a_stopped_process_that_holds_the_lock_of_a_schedule_or_of_the_names_delays_only_what_needs_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    for name in ("held", "other"):
        added = schedules.add(settings, name, "0 0 1 1 *", TrainSpec(shards="s", weights="none"), JobRequest())
        late = added.model_copy(update={"served": added.served - timedelta(days=731)})
        schedules._write(schedules._folder(settings, name), late)

    with locked(settings.storage / "schedules" / "held" / ".lock"):  # as a process that was stopped inside it
        served = schedules.submit_due(settings)
    with names.locked_names(settings.storage):
        unnamed = schedules.submit_due(settings)

    assert [str(state_of(settings.storage, run_id).name)[:6] for run_id in served] == ["other-"]
    assert unnamed == []
    assert caplog.text.count("another process has held") == 2
    assert len(schedules.submit_due(settings)) == 1


def test_stopped_processes_that_hold_the_locks_of_many_schedules_and_runs_are_waited_for_once(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schedules, "LOCK_SECONDS", 0.05)
    held = [settings.storage / "schedules" / f"held-{number}" / ".lock" for number in range(3)]
    for name in (*(lock.parent.name for lock in held), "other"):
        added = schedules.add(settings, name, "0 0 1 1 *", TrainSpec(shards="s", weights="none"), JobRequest())
        late = added.model_copy(update={"served": added.served - timedelta(days=731)})
        schedules._write(schedules._folder(settings, name), late)
    runs = [RunPaths.of(settings.storage, submit(settings, FakeSpec())) for _ in range(3)]
    for paths in runs:
        with run_state.changing(paths) as state:
            run_state.write_state(paths, state.with_state("paused"))
    memory = ReconcilerMemory()

    with contextlib.ExitStack() as stopped:
        for lock in (*held, *(paths.lock for paths in runs)):
            stopped.enter_context(locked(lock))
        for seconds in (0.05, 0.03):  # what is left of it differs in each pass
            monkeypatch.setattr(reconciler, "LOCK_SECONDS", seconds)
            reconcile(settings, redis, memory)
        [served], nothing = schedules.submit_due(settings), schedules.submit_due(settings)
    after = len(schedules.submit_due(settings))
    reconcile(settings, redis, memory)

    assert str(state_of(settings.storage, served).name).startswith("other-")
    assert (nothing, after) == ([], 3)
    assert {state_of(settings.storage, paths.run_id).state for paths in runs} == {"queued"}
    said = [record.message.partition("another process ")[2] for record in caplog.records]
    assert [line.partition(" /")[0] for line in said if line] == 6 * ["holds"]  # each is said once
    assert "schedule held-1 is skipped until its lock is free: another process holds" in caplog.text


def test_a_stopped_process_that_holds_the_lock_of_a_stop_request_keeps_nobody_waiting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))

    with locked(paths.folder / ".stop.lock"), pytest.raises(StorageError, match="another process has held"):
        StopRequest("window", 1).publish(paths.stop)

    StopRequest("window", 1).publish(paths.stop)
    assert StopRequest.read(paths.stop, 1) == StopRequest("window", 1)
