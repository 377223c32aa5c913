"""Injected faults: every run ends in the correct state, none is lost or published twice, no process is left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from cluster.process_env import job_worker_environment
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.storage_marker import ensure_storage_id
from jobs.errors import Refused
from jobs.queue import embedded_redis
from jobs.queue import stack as jobs_stack
from jobs.queue.queues import waiting
from jobs.queue.stack import Stack, log_file, start_stack
from jobs.queue.submit import submit
from jobs.queue.worker_list import drain, live_workers
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests import kills_report
from tests.kills_trainer import ChainSpec
from tests.stack import (
    FAKE_WORKER,
    FakeSpec,
    children_of,
    eventually,
    lines_of,
    processes_of,
    reaches,
    restart_redis,
    start_run,
    state_of,
    trainer_of,
)


@pytest.fixture
def running(stack: Stack, settings: Settings) -> str:
    """The id of a run that is running; it takes 3 s in total."""
    return start_run(settings, FakeSpec(steps=60, step_seconds=0.05, leaves_child=True))


def test_kill_9_of_the_work_horse_costs_one_attempt(stack: Stack, running: str, settings: Settings) -> None:
    [work_horse] = children_of(stack.workers[0].pid)

    os.kill(work_horse, signal.SIGKILL)
    state = reaches(settings.storage, running, "succeeded")

    assert (state.attempt, state.losses) == (2, 1)
    assert_published_once(settings, running, by_attempt=2)


def test_kill_9_of_the_worker_ends_its_work_horse_and_trainer(stack: Stack, running: str, settings: Settings) -> None:
    first = processes_of(running)

    stack.workers[0].kill()
    stack.workers[0].wait()

    assert len(first) >= 3  # guard, trainer, the child it left
    assert eventually(lambda: not processes_of(running))
    stack.restart_ended()
    state = reaches(settings.storage, running, "succeeded")
    assert (state.attempt, state.losses) == (2, 1)
    assert_published_once(settings, running, by_attempt=2)


@pytest.mark.slow
def test_kill_9_of_the_guard_leaves_nothing_of_the_run(stack: Stack, running: str, settings: Settings) -> None:
    [work_horse] = children_of(stack.workers[0].pid)
    [guard] = children_of(work_horse)

    os.kill(guard, signal.SIGKILL)

    state = reaches(settings.storage, running, "succeeded")
    assert (state.attempt, state.losses) == (2, 1)
    assert processes_of(running) == []


def test_sigterm_hands_the_run_back_to_the_front_without_spending_a_retry(
    stack: Stack, running: str, settings: Settings, redis: Redis
) -> None:
    other = submit(settings, FakeSpec())

    stack.workers[0].terminate()

    assert stack.workers[0].wait(timeout=600) == 0
    state = state_of(settings.storage, running)
    assert (state.state, state.attempt, state.losses) == ("queued", 1, 0)
    assert waiting(redis, "normal") == [running, other]
    assert processes_of(running) == []


@pytest.mark.slow
def test_a_second_sigterm_changes_nothing(stack: Stack, running: str, settings: Settings) -> None:
    stack.workers[0].terminate()
    stack.workers[0].terminate()

    assert stack.workers[0].wait(timeout=600) == 0
    state = state_of(settings.storage, running)
    assert (state.state, state.losses) == ("queued", 0)


@pytest.mark.slow
def test_a_trainer_that_saves_no_checkpoint_is_killed_when_the_drain_is_over(stack: Stack, settings: Settings) -> None:
    run_id = start_run(settings, FakeSpec(steps=600, step_seconds=0.1, stubborn=True))

    stack.workers[0].terminate()

    assert stack.workers[0].wait(timeout=600) == 0
    assert len(lines_of(RunPaths.of(settings.storage, run_id).folder / "steps.jsonl")) < 600
    assert (state_of(settings.storage, run_id).state, state_of(settings.storage, run_id).losses) == ("queued", 0)
    assert processes_of(run_id) == []


def test_a_worker_can_be_drained_by_name_from_elsewhere(
    stack: Stack, running: str, settings: Settings, redis: Redis
) -> None:
    [worker] = live_workers(redis)

    drained = drain(redis, worker.name)

    assert (worker.state, worker.run) == ("busy", running)
    assert drained == [worker.name]
    assert stack.workers[0].wait(timeout=600) == 0
    with pytest.raises(Refused, match="no job worker is called 'nobody'"):
        drain(redis, "nobody")


def test_a_redis_that_is_killed_while_a_run_runs_costs_nothing(stack: Stack, running: str, settings: Settings) -> None:
    server = embedded_redis.ensure_running(settings.storage)
    next_one = submit(settings, FakeSpec())

    os.kill(server.pid, signal.SIGKILL)
    os.waitpid(server.pid, 0)
    time.sleep(3)
    restart_redis(settings.storage)

    assert reaches(settings.storage, running, "succeeded").attempt == 1
    reaches(settings.storage, next_one, "succeeded")
    assert_published_once(settings, running, by_attempt=1)
    assert_published_once(settings, next_one, by_attempt=1)


def test_a_worker_that_started_redis_itself_keeps_it_from_run_to_run(tmp_path: Path) -> None:
    alone = Settings(storage=tmp_path / "alone")
    with subprocess.Popen(FAKE_WORKER, env=job_worker_environment(alone), start_new_session=True) as worker:
        try:
            assert eventually(lambda: embedded_redis.running(alone.storage) is not None)
            first = embedded_redis.running(alone.storage)
            for _ in range(2):
                reaches(alone.storage, submit(alone, FakeSpec()), "succeeded")
            last = embedded_redis.running(alone.storage)
        finally:
            worker.terminate()
            worker.wait(timeout=600)
            embedded_redis.stop(alone.storage)

    assert first == last


def test_a_stack_starts_its_redis_again_and_its_workers_find_it(tmp_path: Path) -> None:
    alone = Settings(storage=tmp_path / "alone")
    with start_stack(alone, 1, worker_command=FAKE_WORKER) as stack:
        reaches(alone.storage, submit(alone, FakeSpec()), "succeeded")

        os.kill(embedded_redis.ensure_running(alone.storage).pid, signal.SIGKILL)
        assert eventually(lambda: embedded_redis.running(alone.storage) is None)
        stack.restart_ended()

        reaches(alone.storage, submit(alone, FakeSpec()), "succeeded")
    assert embedded_redis.running(alone.storage) is None


def test_a_redis_that_cannot_be_started_again_is_tried_until_it_can_and_nothing_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jobs_stack, "REDIS_PAUSE_SECONDS", 0.0)
    alone = Settings(storage=tmp_path / "alone")
    with start_stack(alone, 1, worker_command=FAKE_WORKER) as stack:
        reaches(alone.storage, submit(alone, FakeSpec()), "succeeded")
        server = embedded_redis.ensure_running(alone.storage)

        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: embedded_redis.running(alone.storage) is None)
        configuration = (alone.storage / "redis" / "redis.conf").rename(tmp_path / "redis.conf")
        (alone.storage / "redis" / "redis.conf").mkdir()  # so that it cannot be written, as on a full disk
        for _ in range(2):
            stack.restart_ended()
        alive = stack.server is not None and stack.server.is_alive
        (alone.storage / "redis" / "redis.conf").rmdir()
        configuration.rename(alone.storage / "redis" / "redis.conf")
        stack.restart_ended()

        reaches(alone.storage, submit(alone, FakeSpec()), "succeeded")
    assert not alive
    assert caplog.text.count(f"Redis (process {server.pid}) has ended and cannot be started again: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("keeps_file", [True, False], ids=["with its file", "its file lost"])
def test_a_redis_that_is_away_for_half_a_minute_costs_nothing(
    stack: Stack, settings: Settings, keeps_file: bool
) -> None:
    long = start_run(settings, FakeSpec(steps=700, step_seconds=0.05))
    queued = [submit(settings, FakeSpec()) for _ in range(3)]
    server = embedded_redis.ensure_running(settings.storage)

    os.kill(server.pid, signal.SIGKILL)
    os.waitpid(server.pid, 0)
    if not keeps_file:
        for file in (settings.storage / "redis" / "appendonlydir").iterdir():
            file.unlink()
    time.sleep(30)
    restart_redis(settings.storage)

    assert reaches(settings.storage, long, "succeeded").attempt == 1
    for run_id in queued:
        reaches(settings.storage, run_id, "succeeded")
        assert_published_once(settings, run_id, by_attempt=1)


@pytest.mark.slow
def test_a_storage_that_is_away_during_a_run_costs_one_attempt(settings: Settings, tmp_path: Path) -> None:
    share = replace(settings, storage=tmp_path / "share")  # apart from the embedded Redis
    worker = (*FAKE_WORKER, "--trainer", "tests.kills_trainer")
    with start_stack(share, 1, worker_command=worker):
        alone, run_id = (submit(share, ChainSpec(chain=100)) for _ in range(2))
        assert eventually(RunPaths.of(share.storage, run_id).progress.exists)

        away = share.storage.rename(tmp_path / "away")  # as after an unmount
        share.storage.mkdir()
        assert eventually(lambda: not processes_of(run_id))
        time.sleep(2 * share.lease_seconds)
        written = list(share.storage.iterdir())
        share.storage.rmdir()
        away.rename(share.storage)

        state = reaches(share.storage, run_id, "succeeded", "failed", "lost")
        after = submit(share, ChainSpec(chain=1))
        reaches(share.storage, after, "succeeded", "failed", "lost")
        log = log_file(share.storage, 1).read_text()

    assert f"the storage {share.storage} cannot be read: {share.storage}/runs does not exist; mount" in log
    assert f"the storage {share.storage} is back" in log
    assert "was deleted" not in log
    assert written == []
    assert (state.state, state.attempt, state.losses) == ("succeeded", 2, 1)
    figures = kills_report.verdict(share.storage, {alone: "chain", run_id: "chain", after: "short"})
    assert kills_report.is_clean(figures), figures


def test_eight_submitters_of_one_name_make_one_run(settings: Settings) -> None:
    with ProcessPoolExecutor(8) as pool:
        outcomes = list(pool.map(submit_named, [settings] * 8))

    made = [outcome for outcome in outcomes if outcome.startswith("train-")]

    assert len(made) == 1
    assert outcomes.count(f"name 'night' belongs to {made[0]}; choose another, or delete that run") == 7
    assert run_state.all_ids(settings.storage) == made


@pytest.mark.slow
def test_two_workers_run_two_hundred_runs_once_each(settings: Settings) -> None:
    with start_stack(settings, 2, worker_command=FAKE_WORKER):
        runs = [submit(settings, FakeSpec()) for _ in range(200)]
        assert eventually(lambda: not run_state.pending_ids(settings.storage))

    for run_id in runs:
        assert_published_once(settings, run_id, by_attempt=1)
    assert {state_of(settings.storage, run_id).state for run_id in runs} == {"succeeded"}


@pytest.mark.slow
def test_an_attempt_that_was_superseded_publishes_nothing(stack: Stack, settings: Settings) -> None:
    run_id = start_run(settings, FakeSpec(steps=40, step_seconds=0.1))
    with frozen(trainer_of(run_id), *children_of(stack.workers[0].pid)):
        state = reaches(settings.storage, run_id, "queued", "running")
        assert eventually(lambda: state_of(settings.storage, run_id).losses == 1)

    with start_stack(settings, 1, worker_command=FAKE_WORKER):
        reaches(settings.storage, run_id, "succeeded")

    assert state.attempt == 1
    assert_published_once(settings, run_id, by_attempt=2)
    assert eventually(lambda: not processes_of(run_id))


def test_a_full_disk_at_submit_is_one_line_and_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    ensure_storage_id(settings.storage)
    code = (
        "import resource, sys; from pathlib import Path; from cluster.settings import Settings\n"
        "from jobs.queue.submit import submit; from tests.stack import FakeSpec\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "settings = Settings(storage=Path(sys.argv[1]), redis_url=sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try: submit(settings, FakeSpec())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    order = [sys.executable, "-c", code, str(settings.storage), str(settings.redis_url)]

    said = subprocess.run(order, capture_output=True, text=True, check=False)

    assert said.stdout.startswith("StorageError "), said
    assert "cannot be written: File too large" in said.stdout
    assert list(settings.runs.iterdir()) == []


def assert_published_once(settings: Settings, run_id: str, *, by_attempt: int) -> None:
    published = lines_of(RunPaths.of(settings.storage, run_id).folder / "published.jsonl")
    assert [line["attempt"] for line in published] == [by_attempt]
    assert processes_of(run_id) == []


def submit_named(settings: Settings) -> str:
    try:
        return submit(settings, FakeSpec(), JobRequest(name="night"))
    except Refused as error:
        return str(error)


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("how", ["emptied", "its key has expired"])
def test_a_job_worker_that_redis_has_forgotten_is_listed_again(
    stack: Stack, settings: Settings, redis: Redis, how: str
) -> None:
    # The version is the last that a job worker says of itself when it starts.
    assert eventually(lambda: any(worker.version for worker in live_workers(redis)))
    [before] = live_workers(redis)

    if how == "emptied":
        redis.flushall()
    else:  # as after a machine was suspended for two minutes
        redis.delete(f"rq:worker:{before.name}")
    reaches(settings.storage, submit(settings, FakeSpec()), "succeeded")

    assert eventually(lambda: any(worker.version for worker in live_workers(redis)))
    [after] = live_workers(redis)
    assert (after.name, after.queues, after.version, after.since) == (
        before.name, before.queues, before.version, before.since,
    )  # fmt: skip
