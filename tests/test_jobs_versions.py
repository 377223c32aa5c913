"""Versions of Nightshift that meet on one storage: refusals that name them, and runs that go back to the queue."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from cluster.cluster_version import record_cluster_version
from cluster.errors import NewerVersion
from cluster.exit_codes import ExitCode
from cluster.files import read_json, write_json
from cluster.launch import THIS_MACHINE
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.version import VERSION
from jobs.queue import queues
from jobs.queue.reconciler import TOO_NEW_SECONDS, ReconcilerMemory, Repair, reconcile
from jobs.queue.stack import start_stack
from jobs.queue.submit import submit
from jobs.queue.tasks import claim_run
from jobs.queue.worker_list import VERSION_FIELD, live_workers
from jobs.runs.outcomes import end, release_watch
from jobs.runs.request import JobRequest, read_request
from jobs.runs.start_forecast import NEXT, start_forecast
from jobs.runs.state import RunState, now
from tests.conftest import Say
from tests.stack import FAKE_WORKER, FakeSpec, eventually, reaches, state_of
from tests.test_jobs_worker_list import OURS, register


def test_a_run_whose_spec_is_newer_than_the_trainer_goes_back_to_the_queue_and_does_not_stop_others(
    settings: Settings, redis: Redis
) -> None:
    newer = submit(settings, FakeSpec(ending="newer"))
    with start_stack(settings, 1, worker_command=FAKE_WORKER):
        assert eventually(lambda: state_of(settings.storage, newer).too_new_for == VERSION)
        other = reaches(settings.storage, submit(settings, FakeSpec()), "succeeded")
        waiting = state_of(settings.storage, newer)
        paths = RunPaths.of(settings.storage, newer)
        write_json(paths.spec, FakeSpec().to_json())
        register_version(redis, "newer-1", "9.0.0")
        state = reaches(settings.storage, newer, "succeeded")

    assert other.state == "succeeded"
    assert (waiting.state, waiting.attempt, waiting.why) == ("queued", 1, "a newer version wrote it")
    assert (state.attempt, state.losses, state.too_new_for) == (2, 0, None)


def test_a_run_that_is_too_new_is_tried_again_when_another_version_is_there_or_after_a_while(
    settings: Settings, redis: Redis
) -> None:
    register_version(redis, OURS, VERSION)
    paths, memory = RunPaths.of(settings.storage, submit(settings, FakeSpec())), ReconcilerMemory()

    refuse(redis, paths)
    at_once = [reconcile(settings, redis, memory) for _ in range(2)]
    memory.too_new[paths.run_id].since -= TOO_NEW_SECONDS + 1
    after_a_while = reconcile(settings, redis, memory)
    refuse(redis, paths)
    again = reconcile(settings, redis, memory)
    register_version(redis, "newer-1", "9.0.0")
    upgraded = reconcile(settings, redis, memory)
    refuse(redis, paths)  # by a job worker of this version, which is still there
    during_the_upgrade = reconcile(settings, redis, memory)
    redis.delete(f"rq:worker:{OURS}")
    at_its_end = reconcile(settings, redis, memory)
    refuse(redis, paths)
    by_a_new_reconciler = reconcile(settings, redis, ReconcilerMemory())

    queued = [Repair(paths.run_id, "put into its queue")]
    assert (at_once, after_a_while, again) == ([[], []], queued, [])
    assert (upgraded, during_the_upgrade, at_its_end, by_a_new_reconciler) == (queued, [], queued, queued)


def refuse(redis: Redis, paths: RunPaths) -> None:
    """Let a job worker of this version take a run whose spec it does not know."""
    queues.remove(redis, paths.run_id, "normal")
    claimed = claim_run(paths, OURS, THIS_MACHINE)
    assert claimed is not None
    end(paths, claimed.lease, ExitCode.NEWER_VERSION)


def register_version(redis: Redis, name: str, of_version: str) -> None:
    register(redis, name, "nightshift-normal")
    redis.hset(f"rq:worker:{name}", VERSION_FIELD, of_version)


def test_a_run_whose_request_is_newer_is_not_claimed_and_says_why(settings: Settings) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    write_json(paths.job, {**read_json(paths.job), "preempt": True})

    with pytest.raises(NewerVersion):
        claim_run(paths, "a worker", THIS_MACHINE)

    state = state_of(settings.storage, paths.run_id)
    assert (state.state, state.attempt, state.too_new_for) == ("queued", 0, VERSION)
    assert state.why == (
        f"{paths.job} has preempt, which Nightshift {VERSION} does not know; a newer version wrote it: update the job "
        "workers"
    )
    later = state_of(settings.storage, submit(settings, FakeSpec()))
    assert start_forecast(settings.storage, state) == state.why
    assert start_forecast(settings.storage, later) == NEXT


def test_a_run_of_a_cluster_of_its_own_waits_for_no_job_worker(settings: Settings) -> None:
    state = RunState(id="train-20261123-203000-a1b2c3", kind="train", state="queued", created=now(), own_cluster=True)

    assert start_forecast(settings.storage, state, unserved=True) == "waits for the Ray cluster of its RayJob"
    assert start_forecast(settings.storage, replace(state, why="preempted"), unserved=True) == "preempted"


def test_a_scheduled_run_whose_request_is_newer_is_listed_with_the_reason(settings: Settings, say: Say) -> None:
    later = datetime.now(UTC) + timedelta(days=1)
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec(), JobRequest(at=later)))
    write_json(paths.job, {**read_json(paths.job), "preempt": True})

    listed, shown = say("list"), say("show", paths.run_id)

    assert (listed[0], shown[0]) == (0, 0), listed + shown
    assert "has preempt, which Nightshift" in shown[1]


def test_a_run_on_a_cluster_whose_request_is_newer_waits_for_another_job_worker(
    settings: Settings, redis: Redis
) -> None:
    register_version(redis, OURS, VERSION)
    paths, memory = RunPaths.of(settings.storage, submit(settings, FakeSpec())), ReconcilerMemory()
    queues.remove(redis, paths.run_id, "normal")
    claim_run(paths, "newer-1", "a cluster")
    release_watch(paths, "newer-1")
    request = read_json(paths.job)
    write_json(paths.job, {**request, "preempt": True})

    with pytest.raises(NewerVersion):
        claim_run(paths, OURS, "a cluster")
    repairs = reconcile(settings, redis, memory)
    write_json(paths.job, request)
    claimed = claim_run(paths, "newer-2", "a cluster")

    state = state_of(settings.storage, paths.run_id)
    assert repairs == []
    assert claimed is not None
    assert claimed.already_running
    assert (state.state, state.job_worker, state.why, state.too_new_for) == ("running", "newer-2", None, None)


def test_a_request_without_options_of_this_version_is_read(settings: Settings) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    write_json(paths.job, {"name": "night", "retries": 1})

    assert read_request(paths) == JobRequest(name="night", retries=1)


def test_a_job_worker_says_its_version_in_redis(settings: Settings, redis: Redis) -> None:
    with start_stack(settings, 1, worker_command=FAKE_WORKER):
        assert eventually(lambda: [worker.version for worker in live_workers(redis)] == [VERSION])


def test_doctor_names_job_workers_and_a_cluster_of_another_version(
    settings: Settings, redis: Redis, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_version(redis, OURS, VERSION)
    register_version(redis, "newer-1", "9.0.0")
    register(redis, "older-1", "nightshift-normal")
    record_cluster_version(settings.storage)
    write_json(settings.storage / "cluster.json", {"nightshift": "0.0.9"})
    monkeypatch.setenv("NIGHTSHIFT_RAY_JOBS_URL", "http://127.0.0.1:1")

    code, out, _ = say("doctor", "--json")

    found = [check["found"] for check in json.loads(out) if check["check"] == "versions"]
    assert code == 1
    assert found == [
        f"{VERSION} here, job worker newer-1 has 9.0.0",
        f"{VERSION} here, job worker older-1 has 0.1.0 or before",
        f"{VERSION} here, the cluster, in its last run, has 0.0.9",
    ]


def test_doctor_says_that_all_versions_are_the_same(settings: Settings, redis: Redis, say: Say) -> None:
    register_version(redis, OURS, VERSION)

    before = redis.info("stats")["total_connections_received"]
    _, out, _ = say("doctor", "--json")
    connections = redis.info("stats")["total_connections_received"] - before

    assert connections == 1
    [found] = [check for check in json.loads(out) if check["check"] == "versions"]
    assert found["ok"]
    assert found["found"] == f"{VERSION} here and on 1 job worker or cluster"
