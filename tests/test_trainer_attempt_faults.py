"""Attempts whose workers, Ray or storage fail: what is tried again, and what a person is told."""

import errno
import os
import pickle
import shutil

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from cluster.errors import InsufficientResources, StorageAway, StorageError
from cluster.exit_codes import ExitCode
from cluster.resources import this_machine
from cluster.run_paths import RunPaths
from data_shards.errors import BadIndex, ShardError, UnreadableShard
from tests.infrastructure_errors import GLOO, NOT_RETRIED, RETRIED, UNKNOWN
from tests.trained import lease_in
from trainer import __main__ as trainer_main
from trainer.attempt import Attempt, Settings
from trainer.distributed import ray_train
from trainer.distributed.infrastructure import infrastructure_error
from trainer.distributed.worker import WorkerTask
from trainer.errors import CheckpointError, InfrastructureError, StorageFull, TrainerError
from trainer.progress import Progress
from trainer.search.trial_messages import FULL, TrialEnd


def test_the_error_that_a_worker_raised_counts_and_not_its_wrapper():
    own = UserExceptionWithTraceback(ValueError("bad shard"), "... Connection closed by peer ...")
    network = UserExceptionWithTraceback(RuntimeError(GLOO + "Connection closed by peer"), "Traceback ...")
    task = RayTaskError("train", "Traceback: nccl", ValueError("bad shard"))

    assert infrastructure_error(own) is None
    assert type(infrastructure_error(network)) is InfrastructureError
    assert infrastructure_error(task) is None


def test_of_several_workers_the_one_with_an_error_of_its_own_decides():
    lost = ray.train.WorkerGroupError(
        "two workers failed",
        {
            0: UserExceptionWithTraceback(RuntimeError(GLOO + "Connection closed by peer"), ""),
            1: UserExceptionWithTraceback(ZeroDivisionError("division by zero"), ""),
        },
    )

    with pytest.raises(ZeroDivisionError):
        ray_train._fit(FailingTrainer(lost), max_restarts=2)


def test_workers_that_were_all_lost_are_the_fault_of_the_infrastructure():
    lost = ray.train.WorkerGroupError("lost", {1: ActorDiedError()})

    with pytest.raises(ray_train.WorkersLost) as caught:
        ray_train._fit(FailingTrainer(lost), max_restarts=2)

    assert str(caught.value) == "worker 1 was lost 3 times; the last time: a node or a worker process ended"


def test_a_fault_of_the_infrastructure_that_a_worker_names_ends_the_attempt_as_one():
    named = UserExceptionWithTraceback(InfrastructureError("the GPU is lost"), "")
    lost = ray.train.WorkerGroupError("lost", {0: ActorDiedError(), 1: named})

    with pytest.raises(InfrastructureError, match=r"^the GPU is lost$"):
        ray_train._fit(FailingTrainer(lost), max_restarts=2)


class FailingTrainer:
    def __init__(self, error):
        self.error = error

    def fit(self):
        raise self.error


@pytest.fixture
def worker_that_meets(tmp_path, monkeypatch):
    """Return the config of a worker that raises an error before its work."""

    def config(error):
        def refuse(_task):
            raise error

        monkeypatch.setattr(ray_train.WorkerContext, "of", refuse)
        attempt = Attempt(paths=RunPaths(tmp_path), lease=lease_in(tmp_path), settings=Settings(storage=tmp_path))
        return {"work": None, "task": WorkerTask(attempt=attempt, spec=None, source=None)}

    return config


def test_a_worker_that_cannot_use_its_gpu_is_not_restarted_again_and_again(worker_that_meets):
    config = worker_that_meets(InsufficientResources("torch cannot use the GPU of this worker"))

    with pytest.raises(InsufficientResources):
        ray_train.run_worker(config)
    restarted = ray_train.run_worker(config)

    assert (type(restarted), str(restarted)) == (TrainerError, "torch cannot use the GPU of this worker")


def test_workers_that_met_a_full_storage_say_so_by_the_type_of_their_error(worker_that_meets):
    config = worker_that_meets(with_cause(CheckpointError("best-000001 cannot be saved"), errno.ENOSPC))

    with pytest.raises(StorageFull, match="best-000001 cannot be saved") as raised:
        ray_train.run_worker(config)
    restarted = ray_train.run_worker(config)

    assert TrialEnd.lost_by(pickle.loads(pickle.dumps(raised.value))).why == FULL
    assert (type(restarted), str(restarted)) == (StorageFull, "best-000001 cannot be saved")


@pytest.mark.parametrize("error", [StorageAway("mount the share again"), InfrastructureError("the GPU is lost")])
def test_workers_that_met_a_fault_of_the_infrastructure_work_again(worker_that_meets, monkeypatch, error):
    config = worker_that_meets(error)
    with pytest.raises(type(error)):
        ray_train.run_worker(config)
    monkeypatch.setattr(ray_train, "_run", lambda _work, _task: "trained")

    assert ray_train.run_worker(config) == "trained"


@pytest.mark.parametrize(("setting", "mode"), [(None, 0o640), ("007", 0o660)])
def test_what_a_worker_writes_has_the_permissions_of_the_run_and_not_those_of_rays_processes(
    worker_that_meets, monkeypatch, tmp_path, setting, mode
):
    config = worker_that_meets(StorageAway("never"))
    monkeypatch.setattr(ray_train, "_run", lambda _work, _task: (tmp_path / "predictions.csv").touch())
    if setting is not None:
        monkeypatch.setenv("NIGHTSHIFT_UMASK", setting)
    before = os.umask(0o022)

    try:
        ray_train.run_worker(config)
    finally:
        os.umask(before)

    assert (tmp_path / "predictions.csv").stat().st_mode & 0o777 == mode


def test_ray_that_does_not_start_in_time_is_started_again(monkeypatch):
    tries = []

    def init(**_options):
        tries.append(1)
        if len(tries) < 3:
            raise RETRIED[0]

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0 * os.cpu_count(), 0.0, 0.0))

    ray_train._start_ray(this_machine(), "/tmp/x")

    assert len(tries) == 3


def test_a_machine_on_which_ray_never_starts_fails_as_infrastructure(monkeypatch):
    def init(**_options):
        raise RETRIED[0]

    monkeypatch.setattr(ray, "init", init)

    with pytest.raises(InfrastructureError, match="Ray did not start in time; the machine is overloaded"):
        ray_train._start_ray(this_machine(), "/tmp/x")


ENDS = {
    "ECC": (RETRIED[12], ExitCode.WORKERS_LOST),
    "duplicate GPU": (NOT_RETRIED[0], ExitCode.FAILED),
    "bug": (UNKNOWN[0], ExitCode.FAILED),
}


@pytest.mark.parametrize(("error", "code"), ENDS.values(), ids=ENDS)
def test_the_exit_code_says_whether_to_retry_and_error_json_says_why(tmp_path, error, code):
    lease = lease_in(tmp_path)
    attempt = Attempt(paths=RunPaths(tmp_path), lease=lease, settings=Settings(storage=tmp_path))

    found = trainer_main._handle_error(attempt, error)

    assert found == code
    assert str(infrastructure_error(error) or error) in (tmp_path / "error.json").read_text()


@pytest.mark.parametrize("error", [ShardError("shards does not exist"), FileNotFoundError(2, "no such file")])
def test_an_error_while_the_storage_is_away_is_no_fault_of_the_run(tmp_path, error):
    storage = tmp_path / "storage"
    lease = lease_in(storage / "runs" / "run")
    attempt = Attempt(paths=lease.paths, lease=lease, settings=Settings(storage=storage))
    storage.rename(tmp_path / "away")
    storage.mkdir()  # the folder that it was mounted at

    code = trainer_main._handle_error(attempt, error)

    assert (code, list(storage.iterdir())) == (ExitCode.WORKERS_LOST, [])


def raised_from(cause):
    error = TrainerError("the checkpoint cannot be read")
    error.__cause__ = cause
    return error


WRAPPERS = {
    "itself": lambda away: away,
    "another error was raised from it": raised_from,
    "a worker of Ray Train": lambda away: UserExceptionWithTraceback(away, "Traceback ..."),
    "a task of Ray": lambda away: RayTaskError("train", "Traceback ...", away),
    "an error of a worker that was raised again": lambda away: raised_from(UserExceptionWithTraceback(away, "...")),
}


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_an_error_of_a_storage_that_is_back_before_it_is_handled_is_no_fault_of_the_run(tmp_path, wrapped):
    storage = tmp_path / "storage"
    lease = lease_in(storage / "runs" / "run")
    attempt = Attempt(paths=lease.paths, lease=lease, settings=Settings(storage=storage))
    storage.rename(tmp_path / "away")
    with pytest.raises(StorageAway) as raised:
        lease.check()
    (tmp_path / "away").rename(storage)

    code = trainer_main._handle_error(attempt, wrapped(raised.value))

    assert code == ExitCode.WORKERS_LOST
    assert f"the storage {storage} could not be reached" in lease.paths.error.read_text()


def test_a_trainer_that_starts_while_the_storage_is_away_is_started_again(tmp_path):
    storage = tmp_path / "storage"
    paths = lease_in(storage / "runs" / "run").paths
    storage.rename(tmp_path / "away")
    storage.mkdir()

    assert trainer_main.main([str(paths.folder), "--attempt", "1"]) == ExitCode.WORKERS_LOST


@pytest.mark.parametrize(
    ("why", "code"), [(errno.ENOSPC, ExitCode.STORAGE_FULL), (errno.EIO, ExitCode.WORKERS_LOST)], ids=["full", "gone"]
)
def test_a_storage_that_takes_no_error_is_called_full_only_if_it_is(tmp_path, monkeypatch, why, code):
    def refuse(_lease, _path, _value):
        raise OSError(why, os.strerror(why))

    lease = lease_in(tmp_path)
    attempt = Attempt(paths=RunPaths(tmp_path), lease=lease, settings=Settings(storage=tmp_path))
    monkeypatch.setattr(type(lease), "write_json", refuse)

    assert trainer_main._handle_error(attempt, ShardError("shards does not exist")) == code


def test_the_error_of_a_run_that_was_deleted_is_not_that_of_its_storage(tmp_path):
    lease = lease_in(tmp_path / "runs" / "run")
    attempt = Attempt(paths=lease.paths, lease=lease, settings=Settings(storage=tmp_path))
    shutil.rmtree(lease.paths.folder)

    assert trainer_main._handle_error(attempt, ShardError("shards does not exist")) == ExitCode.FAILED


def with_cause(error, number):
    """An error of ours as the trainer raises it when a file of the storage fails."""
    try:
        raise error from OSError(number, os.strerror(number))
    except (StorageError, TrainerError, ShardError) as raised:
        return raised


OURS = [
    StorageError("trials.jsonl cannot be read"),
    CheckpointError("step-1 cannot be saved"),
    BadIndex("no index.json"),
]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
def test_an_error_of_ours_that_a_failing_storage_caused_is_retried(tmp_path, worker_that_meets, error, number):
    raised = with_cause(type(error)(str(error)), number)
    config = worker_that_meets(raised)
    attempt = config["task"].attempt

    with pytest.raises(InfrastructureError, match=str(error)):
        ray_train.run_worker(config)

    assert not (tmp_path / "scratch").exists()  # where workers that start again would find it
    assert trainer_main._handle_error(attempt, raised) == ExitCode.WORKERS_LOST
    assert str(error) in (tmp_path / "error.json").read_text()


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EIO, ExitCode.WORKERS_LOST), (errno.ESTALE, ExitCode.WORKERS_LOST), (errno.EACCES, ExitCode.FAILED)],
)
def test_a_shard_that_a_loader_process_cannot_read_costs_a_retry_only_if_its_disk_failed(tmp_path, number, code):
    attempt = Attempt(paths=RunPaths(tmp_path), lease=lease_in(tmp_path), settings=Settings(storage=tmp_path))
    error = UnreadableShard.by(OSError(number, os.strerror(number)), "train-00000.tar")  # its cause stays there

    assert trainer_main._handle_error(attempt, error) == code
    assert "train-00000.tar cannot be read" in (tmp_path / "error.json").read_text()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT])
@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
def test_an_error_of_ours_that_a_person_has_to_mend_is_not_retried(tmp_path, error, number):
    attempt = Attempt(paths=RunPaths(tmp_path), lease=lease_in(tmp_path), settings=Settings(storage=tmp_path))

    found = trainer_main._handle_error(attempt, with_cause(type(error)(str(error)), number))

    assert found == ExitCode.FAILED


def test_a_trainer_that_cannot_read_its_run_at_the_start_is_started_again(tmp_path, monkeypatch):
    paths = lease_in(tmp_path / "runs" / "run").paths
    paths.job.write_text('{"retries": 1}')

    def unanswered(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr("cluster.files.read_content", unanswered)

    assert trainer_main.main([str(paths.folder), "--attempt", "1"]) == ExitCode.WORKERS_LOST


def test_a_storage_that_does_not_take_the_progress_does_not_end_the_run(tmp_path, monkeypatch):
    progress = Progress(RunPaths(tmp_path), lease_in(tmp_path))
    progress.start_phase("train", total=10)

    def stale(*_arguments, **_options):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as failing:
        failing.setattr(type(progress.lease), "write_json", stale)
        progress.start_phase("evaluate", total=10)
    progress.write()

    assert '"phase": "evaluate"' in progress.paths.progress.read_text()
