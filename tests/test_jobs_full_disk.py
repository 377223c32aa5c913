"""A storage that really fills up: nothing is lost or half published, and work continues when there is room."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from cluster.exit_codes import ExitCode
from cluster.files import read_lines
from cluster.launch import THIS_MACHINE
from cluster.lease import Lease, heartbeat_of, latest_attempt
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import actions, embedded_redis
from jobs.queue.reconciler import ReconcilerMemory, reconcile
from jobs.queue.stack import Stack, start_stack
from jobs.queue.submit import submit
from jobs.queue.tasks import claim_run
from jobs.runs import state as run_state
from jobs.runs.outcomes import end
from jobs.runs.request import JobRequest
from tests.conftest import Say
from tests.disks import SmallDisk, small_disk
from tests.stack import (
    FAKE_WORKER,
    FakeSpec,
    children_of,
    eventually,
    lines_of,
    processes_of,
    reaches,
    start_run,
    state_of,
)
from trainer.specs import TrainSpec


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=8) as found:
        yield found


@pytest.fixture
def here(settings: Settings, disk: SmallDisk) -> Settings:
    """Settings whose storage is on the small disk, while Redis is not."""
    return replace(settings, storage=disk.folder / "storage").with_storage_ready()


@pytest.fixture
def stack(here: Settings) -> Iterator[Stack]:
    with start_stack(here, 1, worker_command=FAKE_WORKER) as running:
        yield running


def test_a_run_whose_storage_fills_goes_on_when_there_is_room(here: Settings, stack: Stack, disk: SmallDisk) -> None:
    first, second = start_run(here, FakeSpec(steps=40, step_seconds=0.05)), submit(here, FakeSpec())
    [worker] = stack.workers

    disk.fill()
    assert eventually(lambda: not processes_of(first) and not children_of(worker.pid))
    while_full = state_of(here.storage, first).state, worker.poll()
    disk.free()

    assert while_full == ("running", None)  # there was no room to record how it ended
    for run_id in (first, second):
        reaches(here.storage, run_id, "succeeded")
        assert len(lines_of(RunPaths.of(here.storage, run_id).folder / "published.jsonl")) == 1
        assert run_state.pending_ids(here.storage) == []
    assert worker.poll() is None
    assert not list(here.storage.rglob(".*.json.*"))


def test_a_run_that_finds_no_room_to_start_waits_for_it(here: Settings, disk: SmallDisk) -> None:
    runs = [submit(here, FakeSpec()) for _ in range(2)]
    disk.fill()

    with start_stack(here, 1, output=None, worker_command=FAKE_WORKER) as stack:
        assert not eventually(lambda: any(state_of(here.storage, run).state != "queued" for run in runs), seconds=5)
        alive = stack.workers[0].poll() is None
        disk.free()
        ended = [reaches(here.storage, run, "succeeded") for run in runs]

    assert alive
    assert [(state.attempt, state.losses) for state in ended] == [(1, 0), (1, 0)]


def test_a_trainer_that_finds_no_room_even_to_say_so_has_failed_with_the_cure(here: Settings, disk: SmallDisk) -> None:
    paths = RunPaths.of(here.storage, submit(here, FakeSpec()))
    claimed = claim_run(paths, "a worker", THIS_MACHINE)
    assert claimed is not None
    disk.fill()

    order = [sys.executable, "-m", "trainer", str(paths.folder), "--attempt", "1"]  # it knows no such spec
    code = subprocess.run(order, capture_output=True, check=False).returncode
    disk.free()
    end(paths, claimed.lease, code)
    failed = state_of(here.storage, paths.run_id)
    retried = actions.retry(here, paths)

    cure = "the storage is full; free space there, then `nightshift retry` goes on from the last good checkpoint"
    assert (code, failed.state, failed.why) == (ExitCode.STORAGE_FULL, "failed", cure)
    assert (retried.state, retried.losses) == ("queued", 0)


def test_an_attempt_sends_heartbeats_on_a_full_disk(here: Settings, disk: SmallDisk) -> None:
    run_id = submit(here, FakeSpec())
    paths = RunPaths.of(here.storage, run_id)
    claimed = claim_run(paths, "a worker", THIS_MACHINE)
    assert claimed is not None
    disk.fill()

    before = heartbeat_of(paths)
    claimed.lease.heartbeat()

    assert heartbeat_of(paths) != before
    claimed.lease.check()


def test_an_attempt_that_finds_no_room_leaves_its_number_free(here: Settings, disk: SmallDisk) -> None:
    paths = RunPaths.of(here.storage, submit(here, FakeSpec()))
    paths.attempts.mkdir()
    disk.fill()

    with pytest.raises(OSError, match="No space left"):
        Lease.claim(paths, after=0)

    assert latest_attempt(paths) == 0


def test_a_stop_request_that_finds_no_room_is_one_line(
    here: Settings, disk: SmallDisk, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = submit(here, FakeSpec())
    claim_run(RunPaths.of(here.storage, run_id), "a worker", THIS_MACHINE)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(here.storage))
    disk.fill()

    said = say("cancel", run_id)

    full = "Error: the storage is full (No space left on device); free some space and repeat the command\n"
    assert said == (1, "", full)


def test_a_message_that_found_no_room_is_sent_later(settings: Settings, redis: Redis) -> None:
    allowed = replace(settings, webhook_hosts=("example.org",))
    run_id = submit(allowed, FakeSpec(), JobRequest(notify="https://example.org/hook"))
    outbox = settings.storage / "outbox"
    outbox.touch()  # in the way, as a full disk would be
    paths = RunPaths.of(settings.storage, run_id)
    with pytest.raises(OSError), run_state.changing(paths) as found:  # noqa: PT011, whatever the system says
        run_state.write_state(paths, found.with_state("failed", "on purpose"))
    outbox.unlink()

    reconcile(settings, redis, ReconcilerMemory())

    [message] = outbox.iterdir()
    assert json.loads(message.read_text())["body"]["state"] == "failed"
    assert run_state.pending_ids(settings.storage) == []


@pytest.mark.slow
def test_a_queue_whose_own_files_find_no_room_goes_on_when_there_is_some(disk: SmallDisk) -> None:
    storage = Settings(storage=disk.folder / "storage").with_storage_ready().storage
    here = Settings(storage=storage, redis_url=embedded_redis.ensure_running(storage).url, lease_seconds=3.0)
    try:
        with start_stack(here, 2, worker_command=FAKE_WORKER) as stack:
            runs = [submit(here, FakeSpec(steps=20, step_seconds=0.05)) for _ in range(20)]
            assert eventually(lambda: len(run_state.pending_ids(storage)) < 20)
            disk.fill()
            assert not eventually(lambda: not run_state.pending_ids(storage), seconds=15)
            disk.free()
            assert eventually(lambda: not run_state.pending_ids(storage))
            assert [worker.poll() for worker in stack.workers] == [None, None]
    finally:
        embedded_redis.stop(storage)

    for run_id in runs:
        assert len(lines_of(RunPaths.of(storage, run_id).folder / "published.jsonl")) == 1, run_id
    assert {state_of(storage, run_id).state for run_id in runs} == {"succeeded"}


@pytest.mark.slow
def test_a_worker_that_waits_for_a_redis_without_room_ends_on_sigterm(disk: SmallDisk, tmp_path: Path) -> None:
    storage = Settings(storage=disk.folder / "storage").with_storage_ready().storage
    here = Settings(storage=storage, redis_url=embedded_redis.ensure_running(storage).url, lease_seconds=3.0)
    log = tmp_path / "worker.log"
    try:
        with log.open("w") as output, start_stack(here, 1, output=output, worker_command=FAKE_WORKER) as stack:
            for _ in range(20):
                submit(here, FakeSpec(steps=20, step_seconds=0.05))
            assert eventually(lambda: len(run_state.pending_ids(storage)) < 20)
            disk.fill()
            assert eventually(lambda: "lost its connection to Redis; it tries again in 4 seconds" in log.read_text())
            stack.workers[0].terminate()
            assert stack.workers[0].wait(timeout=600) == 0
    finally:
        disk.free()
        embedded_redis.stop(storage)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_that_fills_its_disk_says_the_cure_and_retry_ends_it(
    settings: Settings, tmp_path: Path, digits_shards: Path
) -> None:
    with small_disk(tmp_path / "disk", megabytes=110) as disk:  # a checkpoint of 50 MB and a best model of 16 fit once
        here = replace(settings, storage=disk.folder / "storage", lease_seconds=20).with_storage_ready()
        spec = TrainSpec(shards=str(digits_shards), weights="none", freeze="none", image_size=32, epochs=3, lr=2e-3)
        with start_stack(here, 1):
            run_id = submit(here, spec)
            paths = RunPaths.of(here.storage, run_id)
            failed = reaches(here.storage, run_id, "succeeded", "failed", "lost")
            published = paths.best.exists(), paths.result.exists()
            disk.grow(megabytes=600)
            actions.retry(here, paths)
            ended = reaches(here.storage, run_id, "succeeded", "failed", "lost")

        assert failed.why is not None
        assert " MB) cannot be saved in " in failed.why
        assert failed.why.endswith(
            " MB are free; free space there and retry the run; it resumes from its last valid checkpoint"
        )
        assert (failed.state, failed.attempt, failed.losses) == ("failed", 1, 0)
        assert published == (False, False)
        assert (ended.state, ended.attempt) == ("succeeded", 2)
        epochs = [(line["epoch"], line["attempt"]) for line in read_lines(paths.metrics)]
        assert epochs == [(1, 1), (2, 2), (3, 2)]
