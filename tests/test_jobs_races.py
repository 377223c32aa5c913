"""Concurrent actions of people and machines: no request is lost, nothing is done twice."""

import os
import signal
import time
from dataclasses import dataclass
from threading import Thread

import pytest
from redis import Redis

from cluster.errors import ClusterUnreachable, LeaseLost
from cluster.exit_codes import ExitCode
from cluster.files import read_json, write_json
from cluster.launch import THIS_MACHINE, RunningTrainer
from cluster.lease import Lease, latest_attempt
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.stop_request import StopRequest
from jobs.queue import actions, embedded_redis, tasks
from jobs.queue.queues import pause, unpause, waiting
from jobs.queue.stack import Stack, start_stack
from jobs.queue.submit import submit
from jobs.queue.tasks import claim_run
from jobs.queue.worker_list import drain, live_workers
from jobs.runs.outcomes import Change, end, lost, mark_dead
from jobs.runs.request import JobRequest
from jobs.runs.state import changing, write_state
from tests.stack import (
    FAKE_WORKER,
    PATIENCE_SECONDS,
    FakeSpec,
    children_of,
    eventually,
    processes_of,
    reaches,
    restart_redis,
    start_run,
    state_of,
)

SEGMENTATION_FAULT, WORKERS_LOST = 128 + 11, 75


def taken(settings: Settings, wanted: JobRequest | None = None) -> tuple[RunPaths, Lease]:
    """A run that a job worker has claimed, and the lease of its first attempt."""
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec(), wanted))
    start_run = claim_run(paths, "a worker", THIS_MACHINE)
    assert start_run is not None
    return paths, start_run.lease


@dataclass
class AwayLauncher:
    """A Ray cluster that never answers."""

    place: str = "ray"
    asked: int = 0

    def start(self, _paths: RunPaths, _attempt: int) -> RunningTrainer:
        self.asked += 1
        raise ClusterUnreachable("Ray does not answer")

    def attach(self, paths: RunPaths, attempt: int) -> RunningTrainer:
        return self.start(paths, attempt)


def test_a_run_that_waits_for_its_cluster_can_be_cancelled(settings: Settings) -> None:
    paths, launcher = RunPaths.of(settings.storage, submit(settings, FakeSpec())), AwayLauncher()
    worker_thread = Thread(target=tasks.run, args=(settings, launcher, paths.run_id), kwargs={"job_worker": "w"})
    worker_thread.start()
    assert eventually(lambda: launcher.asked > 0)

    state = actions.cancel(settings, paths)
    worker_thread.join()

    assert state.state == "cancelled"


@pytest.mark.parametrize("code", [WORKERS_LOST, SEGMENTATION_FAULT])
def test_a_run_that_crashes_while_it_is_cancelled_is_not_queued_again(settings: Settings, code: int) -> None:
    paths, lease = taken(settings)
    StopRequest("cancel", 1).publish(paths.stop)

    end(paths, lease, code)

    assert (state_of(settings.storage, paths.run_id).state, paths.stop.exists()) == ("cancelled", False)


def test_a_stop_request_that_arrives_while_an_attempt_ends_is_obeyed(settings: Settings) -> None:
    paths, lease = taken(settings)
    with changing(paths):
        ending = Thread(target=end, args=(paths, lease, WORKERS_LOST))
        ending.start()  # it waits for the lock that `cancel` holds
        StopRequest("cancel", 1).publish(paths.stop)

    ending.join()

    assert state_of(settings.storage, paths.run_id).state == "cancelled"


def test_a_cancel_is_never_undone_by_a_drain(settings: Settings) -> None:
    paths, _ = taken(settings)

    StopRequest("drain", 1, seconds=1.0).publish(paths.stop)
    StopRequest("cancel", 1).publish(paths.stop)
    StopRequest("overtime", 1).publish(paths.stop)

    assert read_json(paths.stop) == {"reason": "cancel", "attempt": 1}


def test_a_run_that_crashes_after_it_has_published_has_succeeded(settings: Settings) -> None:
    paths, lease = taken(settings)
    write_json(paths.result, {"metrics": {"accuracy": 1.0}})

    end(paths, lease, SEGMENTATION_FAULT)

    assert state_of(settings.storage, paths.run_id).state == "succeeded"


def test_a_run_that_hangs_after_it_has_published_has_succeeded(settings: Settings) -> None:
    paths, lease = taken(settings)
    write_json(paths.result, {"metrics": {"accuracy": 1.0}})

    end(paths, lease, lost(paths, 1, "no progress for 600 s in the phase 'evaluate'"))

    state = state_of(settings.storage, paths.run_id)
    assert (state.state, state.losses) == ("succeeded", 0)


def test_a_trainer_that_starts_after_its_attempt_has_ended_publishes_nothing(settings: Settings) -> None:
    paths, lease = taken(settings)
    end(paths, lease, Change("queued", "Ray does not answer"))  # it got the job, but its answer was lost

    with pytest.raises(LeaseLost, match="attempt 1 was marked dead"):
        Lease.join(paths, 1)

    assert not lease.drafts.exists()
    assert state_of(settings.storage, paths.run_id).state == "queued"


def test_a_run_that_was_marked_dead_while_it_published_is_not_run_again(settings: Settings) -> None:
    paths, _ = taken(settings)
    mark_dead(paths, 1, "no heartbeat for 3 s")
    write_json(paths.result, {"metrics": {"accuracy": 1.0}})  # it had checked its lease just before

    second = claim_run(paths, "another worker", THIS_MACHINE)

    state = state_of(settings.storage, paths.run_id)
    assert second is None
    assert (state.state, state.attempt, latest_attempt(paths)) == ("succeeded", 1, 1)


def test_a_retried_run_is_safe_from_its_attempt_that_is_still_dying(settings: Settings) -> None:
    paths, dying = taken(settings, JobRequest(retries=0))
    mark_dead(paths, 1, "no heartbeat for 3 s")
    actions.retry(settings, paths)

    with pytest.raises(LeaseLost, match="attempt 1 was marked dead"):
        dying.check()
    end(paths, dying, Change("failed", "the older one's view"))
    second = claim_run(paths, "another worker", THIS_MACHINE)
    end(paths, dying, 1)

    assert second is not None
    state = state_of(settings.storage, paths.run_id)
    assert (state.state, state.attempt, state.why) == ("running", 2, None)


def test_an_attempt_whose_run_was_deleted_can_publish_nothing(settings: Settings) -> None:
    paths, lease = taken(settings)
    write_json(paths.error, {"attempt": 1, "error": "the images are all black"})
    end(paths, lease, ExitCode.FAILED)

    actions.delete(paths)

    with pytest.raises(LeaseLost, match="the run was deleted while attempt 1 was running"):
        lease.check()


@pytest.mark.parametrize("state", ["queued", "scheduled", "paused"])
def test_a_run_that_does_not_run_is_cancelled_at_once_and_can_be_retried(
    settings: Settings, redis: Redis, state: str
) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    with changing(paths) as found:
        write_state(paths, found.with_changes(state=state))

    cancelled = actions.cancel(settings, paths)
    retried = actions.retry(settings, paths)

    assert (cancelled.state, cancelled.why) == ("cancelled", "cancelled before it ran")
    assert retried.state == "queued"
    assert waiting(redis, "normal") == [paths.run_id]


def test_a_run_whose_job_worker_is_gone_can_be_cancelled(settings: Settings) -> None:
    paths, _ = taken(settings)

    state = actions.cancel(settings, paths)  # nobody reconciles here

    assert (state.state, paths.stop.exists()) == ("cancelled", False)


@dataclass
class GoesOnLauncher:
    """A cluster whose trainers keep running unwatched, and stop when requested."""

    paths: RunPaths
    place: str = "elsewhere"
    sends_own_heartbeat: bool = False

    def start(self, _paths: RunPaths, _attempt: int) -> RunningTrainer:
        raise AssertionError("it runs already")

    def attach(self, _paths: RunPaths, _attempt: int) -> RunningTrainer:
        return self

    def wait(self, seconds: float) -> int | None:
        time.sleep(min(seconds, 0.1))
        return 3 if self.paths.stop.exists() else None

    def kill(self) -> None:
        raise AssertionError("it stops by itself")


@pytest.mark.parametrize(("began_before", "state"), [(100.0, "failed"), (0.0, "running")])
def test_the_time_of_an_attempt_counts_from_its_start_whoever_watches(
    settings: Settings, began_before: float, state: str
) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec(), JobRequest(max_duration_seconds=50)))
    assert claim_run(paths, "a worker that ended", "elsewhere") is not None
    then = time.time() - began_before
    os.utime(paths.attempts / "1.claimed", (then, then))
    with changing(paths) as found:
        write_state(paths, found.with_changes(job_worker=None))

    watch = Thread(target=tasks.run, args=(settings, GoesOnLauncher(paths), paths.run_id), kwargs={"job_worker": "w"})
    watch.start()
    watch.join(timeout=600 if state == "failed" else 2)

    assert state_of(settings.storage, paths.run_id).state == state
    StopRequest("cancel", 1).publish(paths.stop)
    watch.join()


def test_sigterm_drains_a_run_that_was_only_just_taken(stack: Stack, settings: Settings, redis: Redis) -> None:
    [worker] = stack.workers
    pause(redis)
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec(steps=600, step_seconds=0.1)))
    with changing(paths):
        unpause(redis)
        assert eventually(lambda: [each.run for each in live_workers(redis)] == [paths.run_id])
        assert eventually(lambda: bool(children_of(worker.pid)))
        worker.terminate()  # the work-horse waits for the lock and has not claimed the run
        time.sleep(1)

    assert worker.wait(timeout=600) == 0
    assert (state_of(settings.storage, paths.run_id).state, processes_of(paths.run_id)) == ("queued", [])


def test_a_worker_that_is_drained_twice_still_saves_a_checkpoint(settings: Settings, redis: Redis) -> None:
    with start_stack(settings, 1, worker_command=(*FAKE_WORKER, "--drain-seconds", "600")) as stack:
        run_id = start_run(settings, FakeSpec(steps=20, holds=True))
        [worker] = live_workers(redis)

        drain(redis, worker.name)
        time.sleep(1.2)  # RQ takes a second request within a second for the same one
        drain(redis, worker.name)
        (RunPaths.of(settings.storage, run_id).folder / "go").touch()

        assert stack.workers[0].wait(timeout=PATIENCE_SECONDS) == 0
    state = state_of(settings.storage, run_id)
    assert (state.state, state.losses) == ("queued", 0)
    assert state.why == "handed back by a job worker that was stopped"


def test_an_idle_worker_stops_though_a_library_has_ignored_the_exception_that_stops_it(
    settings: Settings, redis: Redis
) -> None:
    def states() -> list[bytes | None]:
        return [redis.hget(f"rq:worker:{worker.name}", "state") for worker in live_workers(redis)]

    with start_stack(settings, 1, worker_command=(*FAKE_WORKER, "--lose-first-stop")) as stack:
        assert eventually(lambda: states() == [b"idle"])

        stack.workers[0].terminate()

        assert stack.workers[0].wait(timeout=600) == 0


@pytest.mark.slow
def test_a_worker_is_drained_while_redis_is_away(stack: Stack, settings: Settings) -> None:
    run_id = start_run(settings, FakeSpec(steps=200, step_seconds=0.1))
    server = embedded_redis.ensure_running(settings.storage)
    os.kill(server.pid, signal.SIGKILL)
    os.waitpid(server.pid, 0)

    stack.workers[0].terminate()

    state = reaches(settings.storage, run_id, "queued")
    restart_redis(settings.storage)
    assert stack.workers[0].wait(timeout=600) == 0
    assert (state.losses, state.why) == (0, "handed back by a job worker that was stopped")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_idle_worker_exits_cleanly_while_redis_is_away(stack: Stack, settings: Settings, redis: Redis) -> None:
    assert eventually(lambda: len(live_workers(redis)) == 1)
    server = embedded_redis.ensure_running(settings.storage)
    os.kill(server.pid, signal.SIGKILL)
    os.waitpid(server.pid, 0)
    time.sleep(2)

    stack.workers[0].terminate()

    assert stack.workers[0].wait(timeout=600) == 0


def test_a_stop_request_for_an_older_attempt_does_not_stop_a_newer_one(settings: Settings) -> None:
    paths, lease = taken(settings)
    end(paths, lease, WORKERS_LOST)
    StopRequest("drain", 1).publish(paths.stop)  # by a job worker that did not know of the newer attempt

    second = claim_run(paths, "another worker", THIS_MACHINE)
    StopRequest("window", 2).publish(paths.stop)

    assert second is not None
    assert read_json(paths.stop) == {"reason": "window", "attempt": 2}
