"""`nightshift reconcile` repairs once what the reconciler of the job workers repairs continuously."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from subprocess import PIPE

import pytest
from redis import Redis

from cluster.launch import THIS_MACHINE
from cluster.lease import Lease
from cluster.process_env import job_worker_environment
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import embedded_redis
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


def test_reconcile_by_hand_says_in_one_line_that_redis_is_gone(
    settings: Settings, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(settings, FakeSpec())
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", "redis://127.0.0.1:1/0")

    code, out, err = say("reconcile")

    assert (code, out) == (1, "")
    assert err.startswith("Error: Redis at redis://127.0.0.1:1 does not answer (")
    assert err.endswith("); start it or correct NIGHTSHIFT_REDIS_URL\n")


def test_a_redis_that_goes_away_meanwhile_is_one_line_and_what_was_repaired_is_kept(
    settings: Settings, redis: Redis, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, running = (submit(settings, FakeSpec()) for _ in range(2))
    redis.delete(queue(redis, "normal").key)
    paths = RunPaths.of(settings.storage, running)
    assert claim_run(paths, "a worker", THIS_MACHINE)
    server, order = embedded_redis.ensure_running(settings.storage), (sys.executable, "-P", "-m", "jobs", "reconcile")
    environment = job_worker_environment(replace(settings, lease_seconds=3600.0))

    with subprocess.Popen(order, env=environment, stdout=PIPE, stderr=PIPE, text=True) as command:
        assert command.stderr is not None
        waits = command.stderr.readline()
        os.kill(server.pid, signal.SIGKILL)
        out, err = command.communicate()
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", embedded_redis.ensure_running(settings.storage).url)
    with sending_heartbeats(paths):
        again = say("reconcile")

    assert waits == "waiting for a heartbeat of 1 run, 3602 s at most\n"
    assert (command.returncode, out) == (1, f"{missing}: put into its queue\n")
    assert err.startswith("Error: the connection to Redis was lost (")
    assert err.endswith("what was repaired is kept: start Redis, then repeat the command for the rest\n")
    assert len(err.splitlines()) == 1
    assert state_of(settings.storage, running).state == "running"
    assert (again[0], again[1], waiting(redis, "normal")) == (0, "", [missing])


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
