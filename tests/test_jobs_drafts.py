"""Half-done submits: whoever meets the claim of a submitter that died undoes it; that of a live one stands."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.files import read_json, write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.errors import NameTaken
from jobs.queue import schedules
from jobs.queue import submit as submitting
from jobs.queue.reconciler import ReconcilerMemory, reconcile
from jobs.queue.submit import submit
from jobs.runs import names
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests.stack import FakeSpec, eventually, state_of
from trainer.specs import TrainSpec, build


def stopped_submit(settings: Settings, name: str) -> int:
    """Fork a process that submits a run of that name and stops after it has claimed the name; return its id."""
    pid = os.fork()
    if pid == 0:
        claim = names.claim

        def claim_and_stop(storage: Path, claimed: str, run_id: str) -> None:
            claim(storage, claimed, run_id)
            time.sleep(600)

        submitting.names.claim = claim_and_stop
        try:
            submit(settings, FakeSpec(), JobRequest(name=name))
        finally:
            os._exit(0)
    assert eventually((settings.storage / "names" / f"{name}.json").exists)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_name_of_a_live_submitter_is_taken_and_that_of_a_dead_one_is_free(settings: Settings) -> None:
    pid = stopped_submit(settings, "mine")

    with pytest.raises(NameTaken):
        submit(settings, FakeSpec(), JobRequest(name="mine"))
    kill(pid)
    run_id = submit(settings, FakeSpec(), JobRequest(name="mine"))

    assert names.run_of(settings.storage, "mine") == run_id
    assert [entry.name for entry in (settings.storage / "runs").iterdir()] == [run_id]


def test_a_published_run_keeps_its_name_when_its_submitter_dies_afterwards(settings: Settings) -> None:
    run_id = submit(settings, FakeSpec(), JobRequest(name="mine"))

    with pytest.raises(NameTaken, match=f"belongs to {run_id}; choose another"):
        submit(settings, FakeSpec(), JobRequest(name="mine"))


def test_a_scheduled_run_whose_submitter_dies_after_claiming_the_name_is_submitted_by_the_next(
    settings: Settings,
) -> None:
    schedules.add(settings, "nightly", "0 20 * * *", build(TrainSpec, shards="/x", weights="none"), JobRequest())
    file = settings.storage / "schedules" / "nightly" / "schedule.json"
    late = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    write_json(file, {**read_json(file), "served": late})
    due = f"nightly-{latest_evening():%Y%m%d-%H%M}"
    kill(stopped_submit(settings, due))

    [run_id] = schedules.submit_due(settings)

    assert state_of(settings.storage, run_id).name == due
    assert run_state.all_ids(settings.storage) == [run_id]
    assert schedules.schedules(settings)[0].last_run == run_id
    assert schedules.submit_due(settings) == []


def test_a_scheduled_run_that_another_process_is_submitting_is_not_counted_as_served(settings: Settings) -> None:
    schedules.add(settings, "nightly", "0 20 * * *", build(TrainSpec, shards="/x", weights="none"), JobRequest())
    file = settings.storage / "schedules" / "nightly" / "schedule.json"
    late = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    write_json(file, {**read_json(file), "served": late})
    pid = stopped_submit(settings, f"nightly-{latest_evening():%Y%m%d-%H%M}")

    meanwhile = schedules.submit_due(settings)
    kill(pid)
    afterwards = schedules.submit_due(settings)

    assert meanwhile == []
    assert len(afterwards) == 1


def test_the_reconciler_deletes_the_draft_of_a_dead_submitter(settings: Settings, redis) -> None:
    kill(stopped_submit(settings, "mine"))
    [draft] = (settings.storage / "runs").glob(".new-*")
    marker = run_state.pending_marker(RunPaths(draft.with_name(draft.name.removeprefix(".new-"))))
    marker.parent.mkdir(exist_ok=True)
    marker.touch()

    reconcile(settings, redis, ReconcilerMemory())

    assert not draft.exists()
    assert not marker.exists()


def test_a_schedule_whose_creator_died_before_storing_it_can_be_added_again(settings: Settings) -> None:
    (settings.storage / "schedules" / "nightly").mkdir(parents=True)
    spec = build(TrainSpec, shards="/x", weights="none")

    added = schedules.add(settings, "nightly", "0 20 * * *", spec, JobRequest())

    assert [each.name for each in schedules.schedules(settings)] == [added.name]


def latest_evening() -> datetime:
    """The last 20:00 of this machine's wall clock."""
    now = datetime.now()
    today = now.replace(hour=20, minute=0, second=0, microsecond=0)
    return today if today <= now else today - timedelta(days=1)
