"""Real Ray Train workers: two of them, in processes of their own."""

import json
import signal

import psutil
import pytest
import torch

from cluster import guard, warm_launch
from cluster.files import read_json, read_lines
from cluster.lease import Lease, latest_attempt
from cluster.resources import cpu_count
from cluster.settings import Settings
from cluster.warm_launch import ForkServer, WarmLauncher
from tests.processes import command_line
from tests.trained import evaluated, new_run, train_spec, trainer_process, wait_until
from trainer.attempt import Attempt
from trainer.distributed.ray_train import run_here
from trainer.distributed.worker import WorkerTask

pytestmark = pytest.mark.timeout(1800)
# Without the cache the workers compute the features in each epoch: long enough to be killed in the middle.
SAME = {"seed": 7, "epochs": 8, "cache": False}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A launcher of trainers that are forks of a process which has imported torch and Ray."""
    guard.adopt_orphans()  # as a job worker does
    with pytest.MonkeyPatch.context() as patch, ForkServer(tmp_path_factory.mktemp("storage")) as fork_server:
        patch.setattr(warm_launch, "OWN_VARIABLES", (*warm_launch.OWN_VARIABLES, "PYTEST_"))
        yield WarmLauncher(fork_server, answer_seconds=300)


@pytest.fixture(scope="module")
def forked(warm, tmp_path_factory, digits_shards):
    """A short training whose trainer was forked, and how it ran; before imports change this process' environment."""
    paths = new_run(tmp_path_factory.mktemp("storage"), train_spec(digits_shards))
    trainer = warm.start(paths, Lease.claim(paths, after=0).attempt)
    assert trainer.wait(600) == 0, paths.log.read_text()
    return paths, trainer


@pytest.fixture(scope="module")
def two_workers(warm, forked, tmp_path_factory, digits_shards):
    """A training on two workers that ended by itself, and what listened while it ran. Its trainer was forked too."""
    paths = new_run(tmp_path_factory.mktemp("storage"), train_spec(digits_shards, workers=2, **SAME))
    trainer = warm.start(paths, Lease.claim(paths, after=0).attempt)
    assert wait_until(lambda: trainer.wait(0.02) is not None or paths.metrics.exists())
    began = {child.pid for child in psutil.Process(trainer.guard_pid).children(recursive=True)}
    assert trainer.wait(600) == 0, paths.log.read_text()
    return paths, began


def test_two_workers_log_each_epoch_once_and_how_long_each_phase_took(two_workers):
    paths, _ = two_workers

    together = read_json(paths.result)

    assert together["workers"] == 2
    assert sorted(together["timing"]) == ["evaluation", "queue", "report", "start", "training"]
    assert [line["epoch"] for line in read_lines(paths.metrics)] == list(range(1, 9))


def test_one_worker_scores_the_model_of_two_as_they_did(two_workers, tmp_path, digits_shards):
    paths, _ = two_workers

    found = evaluated(tmp_path, paths.best, digits_shards, split="valid", seed=7)

    stored = read_json(paths.result)["metrics"]
    assert found.metrics["confusion_matrix"] == stored["confusion_matrix"]
    assert found.metrics["loss"] == pytest.approx(stored["loss"], rel=1e-6)


def test_no_process_is_left_behind(two_workers):
    _, began = two_workers

    assert len(began) > 2
    assert not [pid for pid in began if psutil.pid_exists(pid)]


def test_a_forked_trainer_publishes_the_same_model_as_a_process_that_was_not_forked(forked, digits_training):
    paths, trainer = forked

    assert trainer.cold is None
    assert model_of(paths) == model_of(digits_training)


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_the_model_is_the_same(two_workers, tmp_path, digits_shards):
    uninterrupted, _ = two_workers
    paths = new_run(tmp_path, train_spec(digits_shards, workers=2, **SAME))
    process = trainer_process(paths)

    workers = ray_workers_when(process, paths.metrics.exists)
    workers[-1].kill()

    assert process.wait(600) == 0, paths.log.read_text()
    assert model_of(paths) == model_of(uninterrupted)


@pytest.mark.slow
def test_a_worker_that_hangs_ends_by_timeout_with_the_stacks_in_the_log(tmp_path, digits_shards):
    paths = new_run(tmp_path, train_spec(digits_shards, workers=2, seed=7, epochs=2000, cache=False))
    process = trainer_process(paths, NIGHTSHIFT_HANG_SECONDS="5")

    # The line of an epoch is written before its checkpoint, and there must be one to go on from.
    workers = ray_workers_when(process, lambda: any(paths.checkpoints.glob("step-*")))
    workers[-1].suspend()
    went_on = wait_until(lambda: "resuming from step-" in paths.log.read_text())
    paths.stop.write_text(json.dumps({"reason": "cancel", "attempt": None}))

    assert process.wait(600) == 3, paths.log.read_text()
    assert went_on
    assert "Timeout (0:00:" in paths.log.read_text()  # faulthandler's heading over the stacks
    assert "in train_epoch" in paths.log.read_text()


@pytest.mark.slow
def test_a_killed_trainer_goes_on_in_the_next_attempt_to_the_same_model(two_workers, tmp_path, digits_shards):
    uninterrupted, _ = two_workers
    paths = new_run(tmp_path, train_spec(digits_shards, workers=2, **SAME))
    process = trainer_process(paths)
    descendants = descendants_when(process, paths.metrics.exists)

    psutil.Process(process.pid).children()[0].kill()
    assert process.wait(600) == 128 + signal.SIGKILL
    _, alive = psutil.wait_procs(descendants, timeout=600)
    assert not alive
    assert trainer_process(paths).wait(600) == 0, paths.log.read_text()

    assert latest_attempt(paths) == 2
    assert model_of(paths) == model_of(uninterrupted)


@pytest.mark.slow
def test_a_trainer_whose_ray_has_lost_its_gcs_leaves_no_error_line_and_the_next_attempt_goes_on(
    tmp_path, digits_shards
):
    paths = new_run(tmp_path, train_spec(digits_shards, workers=2, seed=7, epochs=2000, cache=False))
    trainer = trainer_process(paths, RAY_gcs_rpc_server_reconnect_timeout_s="5")
    descendants = descendants_when(trainer, lambda: any(paths.checkpoints.glob("step-*")))

    (gcs,) = [child for child in descendants if "/gcs_server" in " ".join(command_line(child)[:1])]
    gcs.kill()
    code = trainer.wait(600)
    after = trainer_process(paths)
    went_on = wait_until(lambda: "resuming from step-" in paths.log.read_text())
    paths.stop.write_text(json.dumps({"reason": "cancel", "attempt": None}))

    assert (code, paths.error.exists()) == (1, False), paths.log.read_text()
    assert after.wait(600) == 3, paths.log.read_text()
    assert went_on


def model_of(paths):
    return (paths.best / "model.safetensors").read_bytes()


def descendants_when(process, happened):
    """The processes below the trainer at the moment something has happened."""
    found = wait_until(lambda: happened() or process.poll() is not None)
    assert found
    return psutil.Process(process.pid).children(recursive=True)


def ray_workers_when(process, happened):
    found = [
        child for child in descendants_when(process, happened) if "RayTrainWorker" in " ".join(command_line(child))
    ]
    assert len(found) == 2
    return sorted(found, key=lambda child: child.pid)


@pytest.mark.parametrize(("variable", "threads"), [("3", 3), ("1", 1), (None, cpu_count())])
def test_the_only_worker_uses_as_many_threads_as_openmp_is_told(
    variable, threads, tmp_path, digits_shards, monkeypatch
):
    before = torch.get_num_threads()
    spec = train_spec(digits_shards)
    paths = new_run(tmp_path, spec)
    attempt = Attempt.of(paths.folder, None, Settings(storage=paths.storage))
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)

    try:
        found = run_here(lambda _: torch.get_num_threads(), WorkerTask(attempt=attempt, spec=spec, source=None))
    finally:
        torch.set_num_threads(before)

    assert found == threads
