"""`nightshift reconcile` repairs once what the reconciler of the job workers repairs continuously."""

import contextlib
import threading
from collections.abc import Iterator

import pytest
from redis import Redis

from cluster.launch import THIS_MACHINE
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.queues import queue, waiting
from jobs.queue.submit import submit
from jobs.queue.tasks import claim_run
from tests.conftest import Say
from tests.stack import FakeSpec, finish, state_of, take_next


def test_reconcile_by_hand_waits_only_until_every_run_has_moved(
    settings: Settings, redis: Redis, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_LEASE_SECONDS", "3600")  # longer than a test may take
    run_id = submit(settings, FakeSpec())
    take_next(redis)
    paths = RunPaths.of(settings.storage, run_id)
    assert claim_run(paths, "a worker", THIS_MACHINE)

    with sending_heartbeats(paths):
        alive = say("reconcile")
    finish(settings, run_id, "succeeded")
    idle = say("reconcile")

    assert alive == (0, "", "waiting for a heartbeat of 1 run, 3602 s at most\nnothing to repair\n")
    assert idle == (0, "", "nothing to repair\n")


def test_reconcile_by_hand_also_finds_what_takes_a_while_to_show(
    settings: Settings, redis: Redis, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_LEASE_SECONDS", "2")
    monkeypatch.setattr("jobs.queue.reconciler.STUCK_SECONDS", 4.0)
    dropped, unwatched = (submit(settings, FakeSpec()) for _ in range(2))
    redis.lrem(queue(redis, "normal").key, 1, unwatched)
    paths = RunPaths.of(settings.storage, unwatched)
    assert claim_run(paths, "a worker that is gone", "ray")
    assert queue(redis, "normal").next_entry() is not None

    with sending_heartbeats(paths):
        code, output, _ = say("reconcile")

    assert code == 0
    assert sorted(output.splitlines()) == sorted(f"{run_id}: put into its queue" for run_id in (dropped, unwatched))
    assert state_of(settings.storage, unwatched).job_worker is None
    assert sorted(waiting(redis, "normal")) == sorted([dropped, unwatched])


@contextlib.contextmanager
def sending_heartbeats(paths: RunPaths) -> Iterator[None]:
    """Send the heartbeats of a run's first attempt, as its trainer would."""
    lease, over = Lease.join(paths, 1), threading.Event()

    def heartbeat() -> None:
        while not over.wait(0.2):
            lease.heartbeat()

    sender = threading.Thread(target=heartbeat)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
