"""Job workers whose wall clocks disagree by ten minutes: leases, windows and schedules hold."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis import Redis

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import schedules
from jobs.queue.submit import submit
from jobs.queue.worker_list import live_workers
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests.clocks import Clock, build_clock
from tests.stack import FakeSpec, eventually, lines_of, processes_of, reaches, start_run, state_of
from trainer.specs import TrainSpec

FIVE_MINUTES = 300


@pytest.fixture
def ahead(tmp_path: Path) -> Clock:
    return build_clock(tmp_path / "ahead", FIVE_MINUTES)


@pytest.fixture
def behind(tmp_path: Path) -> Clock:
    return build_clock(tmp_path / "behind", -FIVE_MINUTES)


def test_a_process_reads_the_shifted_clock(ahead: Clock, behind: Clock) -> None:
    code = "import datetime, time; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"

    shown = [
        [float(word) for word in subprocess.check_output([*clock.command, sys.executable, "-c", code]).split()]
        for clock in (ahead, behind)
    ]

    for shift, (seconds, moment, monotonic) in zip((FIVE_MINUTES, -FIVE_MINUTES), shown, strict=True):
        assert seconds - time.time() == pytest.approx(shift, abs=30)
        assert moment - time.time() == pytest.approx(shift, abs=30)
        assert monotonic == pytest.approx(time.monotonic(), abs=30)


def test_workers_ten_minutes_apart_run_every_run_once(settings: Settings, ahead: Clock, behind: Clock) -> None:
    with behind.workers(settings):
        long = start_run(settings, FakeSpec(steps=100, step_seconds=0.1))  # three leases long, watched by another clock
        with ahead.workers(settings):  # at its start it cleans RQ's registries, where entries look old
            runs = [long, *(submit(settings, FakeSpec()) for _ in range(12))]
            assert eventually(lambda: not run_state.pending_ids(settings.storage))

    for run_id in runs:
        state = state_of(settings.storage, run_id)
        assert (state.state, state.attempt, state.losses) == ("succeeded", 1, 0)
        assert len(lines_of(RunPaths.of(settings.storage, run_id).folder / "published.jsonl")) == 1
        assert processes_of(run_id) == []


def test_a_dead_attempt_is_found_dead_by_any_clock(settings: Settings, ahead: Clock, behind: Clock) -> None:
    run_id = submit(settings, FakeSpec(steps=2, holds=True))
    folder = RunPaths.of(settings.storage, run_id).folder
    with behind.workers(settings) as stack:
        assert eventually((folder / "steps.jsonl").exists)
        stack.workers[0].kill()
        assert eventually(lambda: not processes_of(run_id))
    (folder / "go").touch()

    with ahead.workers(settings):
        state = reaches(settings.storage, run_id, "succeeded")

    assert (state.attempt, state.losses) == (2, 1)


def test_a_clock_that_is_put_forward_and_back_in_mid_run_changes_nothing(settings: Settings, ahead: Clock) -> None:
    ahead.put(0)
    with ahead.workers(settings):
        run_id = submit(settings, FakeSpec(steps=2, holds=True), JobRequest(max_duration_seconds=60))
        folder = RunPaths.of(settings.storage, run_id).folder
        assert eventually((folder / "steps.jsonl").exists)
        for seconds in (FIVE_MINUTES, -FIVE_MINUTES, 0):
            ahead.put(seconds)
            time.sleep(1)
        (folder / "go").touch()
        state = reaches(settings.storage, run_id, "succeeded", "failed", "lost")

    assert (state.state, state.attempt, state.losses) == ("succeeded", 1, 0)


def test_a_window_that_only_one_clock_sees_open_neither_loses_nor_repeats_the_run(
    settings: Settings, redis: Redis, ahead: Clock, behind: Clock
) -> None:
    here = datetime.now().astimezone()
    window = f"{here + timedelta(minutes=3):%H:%M}-{here + timedelta(hours=3):%H:%M}"
    with ahead.workers(settings):  # its reconciler queues the run, which both may take
        assert eventually(lambda: redis.exists("nightshift:role:reconciler") == 1)
        with behind.workers(settings, 3):
            assert eventually(lambda: len(live_workers(redis)) == 4)
            run_id = submit(settings, FakeSpec(steps=40, step_seconds=0.1), JobRequest(window=window))
            waits = state_of(settings.storage, run_id).state
            state = reaches(settings.storage, run_id, "succeeded")

    assert waits == "scheduled"
    assert (state.attempt, state.losses) == (1, 0)


def test_a_time_is_served_once_though_the_next_reconciler_has_an_earlier_clock(
    settings: Settings, ahead: Clock, behind: Clock
) -> None:
    kept = schedules.add(settings, "yearly", "0 0 1 1 *", TrainSpec(shards="s", weights="none"), JobRequest())
    long_ago = datetime.now(UTC) - timedelta(days=800)
    schedules._write(schedules._folder(settings, "yearly"), kept.model_copy(update={"served": long_ago}))

    for clock in (ahead, behind):
        with clock.workers(settings):
            assert eventually(lambda: schedules.schedules(settings)[0].last_run is not None)
            time.sleep(5)  # two more checks of what is due

    assert len(run_state.all_ids(settings.storage)) == 1
