"""The queue with the real trainer: small real trainings, drained and killed."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.stack import Stack, start_stack
from jobs.queue.submit import submit
from jobs.runs.record import read_progress, read_record
from jobs.runs.request import JobRequest
from tests.stack import arguments_of, eventually, processes_of, reaches, state_of
from trainer.specs import TrainSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EPOCHS = 5


@pytest.fixture
def patient(settings: Settings) -> Settings:
    """A real trainer sends a heartbeat every 5 s."""
    return Settings(storage=settings.storage, redis_url=settings.redis_url, lease_seconds=20)


@pytest.fixture
def stack(patient: Settings) -> Iterator[Stack]:
    with start_stack(patient, 1) as running:
        yield running


def spec_of(shards: Path, workers: int = 1) -> TrainSpec:
    return TrainSpec(
        shards=str(shards), weights="none", freeze="none", image_size=32, epochs=EPOCHS, lr=2e-3, workers=workers
    )


def in_epoch(settings: Settings, run_id: str, epoch: int) -> bool:
    return int(read_progress(RunPaths.of(settings.storage, run_id)).get("epoch") or 0) >= epoch


def test_a_training_that_is_drained_and_then_killed_succeeds(
    stack: Stack, patient: Settings, digits_shards: Path
) -> None:
    run_id = submit(patient, spec_of(digits_shards))
    assert eventually(lambda: in_epoch(patient, run_id, 1))

    stack.workers[0].terminate()
    assert stack.workers[0].wait(timeout=600) == 0
    drained = state_of(patient.storage, run_id)
    left = processes_of(run_id)
    stack.restart_ended()
    assert eventually(lambda: in_epoch(patient, run_id, 2))
    os.kill(trainer(run_id), signal.SIGKILL)
    state = reaches(patient.storage, run_id, "succeeded", "failed", "lost")

    assert (drained.state, drained.attempt, drained.losses) == ("queued", 1, 0)
    assert left == []
    assert (state.state, state.attempt, state.losses) == ("succeeded", 3, 1)
    record = read_record(RunPaths.of(patient.storage, run_id))
    assert [line["epoch"] for line in record.metrics] == list(range(1, EPOCHS + 1))
    assert processes_of(run_id) == []


def test_nothing_of_ray_is_left_when_its_job_worker_is_killed(
    stack: Stack, patient: Settings, digits_shards: Path
) -> None:
    run_id = submit(patient, spec_of(digits_shards, workers=2), JobRequest(retries=0))
    assert eventually(lambda: any("raylet" in command_of(pid) for pid in processes_of(run_id)))
    ray = len(processes_of(run_id))

    stack.workers[0].kill()
    stack.workers[0].wait()

    assert ray > 5
    assert eventually(lambda: not processes_of(run_id))
    stack.restart_ended()
    assert reaches(patient.storage, run_id, "lost").losses == 1


def trainer(run_id: str) -> int:
    return next(pid for pid in processes_of(run_id) if arguments_of(pid)[1:4] == [b"-P", b"-m", b"trainer"])


def command_of(pid: int) -> str:
    try:
        return arguments_of(pid)[0].decode()
    except OSError:
        return ""
