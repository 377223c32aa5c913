"""Ray Train: start or join Ray, run a function on every worker, and return its result or its error."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from cluster import stack_dumps
from cluster.access import restrict_umask
from cluster.errors import ClusterError, StorageAway
from cluster.files import read_json_object, write_json
from cluster.resources import Machine, refuse_fewer_gpus
from cluster.settings import Settings, umask_setting
from data_shards.errors import ShardError
from trainer.attempt import Attempt
from trainer.distributed.cluster_wait import wait_for_room
from trainer.distributed.infrastructure import infrastructure_error
from trainer.distributed.local_gpus import gpus_of_machine, lease_local_gpus
from trainer.distributed.local_ray import LocalTorchTrainer, session_folder, starting_for_one_run
from trainer.distributed.memory_errors import out_of_memory
from trainer.distributed.process_group import GroupConfig
from trainer.distributed.ray_fork_server import forking_python
from trainer.distributed.visible_wait import VisibleWait
from trainer.distributed.worker import S_co, WorkerContext, WorkerTask
from trainer.errors import (
    FeaturesMissing,
    InfrastructureError,
    Stopped,
    StorageFull,
    TrainerError,
    TrainingDiverged,
    UnsupportedPrecision,
    WorkersLost,
    infrastructure_fault,
    storage_full,
)
from trainer.result import FeatureCounts
from trainer.specs import Spec
from trainer.specs.base import refuse_elastic_workers_here

OBJECT_STORE_BYTES = 128 * 2**20  # nothing large goes through Ray; samples and checkpoints are files
MAX_START_TRIES = 6
RESIZE_SECONDS = 60.0  # how often Ray looks for room for more workers of an elastic group
OUR_ERRORS = (TrainerError, ShardError, ClusterError)
# At the same place, so no rank waits for another.
RAISED_ON_ALL_RANKS = (FeaturesMissing, Stopped, TrainingDiverged, UnsupportedPrecision)

R = TypeVar("R")
Resource: TypeAlias = Literal["CPU", "GPU"]

logger = logging.getLogger(__name__)


def run_on_workers(work: Callable[[WorkerContext[S_co]], R], task: WorkerTask[S_co]) -> R:
    """Run `work` on the requested number of Ray Train workers and return the result of rank 0.

    A single worker on this machine runs in this process, which saves the seconds that starting Ray takes.

    Raises:
        InsufficientResources: This machine can never provide the workers.
        WorkersLost: Workers died or hung more often than they may be restarted.
        SpecError: The number of workers may change, and there is no cluster.
        TrainerError, ShardError, ClusterError: Raised by a worker.
    """
    settings, spec = task.attempt.settings, task.spec
    refuse_elastic_workers_here(spec, on_cluster=settings.ray_address is not None)
    if settings.ray_address is None and spec.workers == 1:
        return run_here(work, task)
    with ray_session(task.attempt, spec) as gpus:
        workers = (spec.required_workers, spec.workers) if spec.is_elastic else spec.workers
        kind = LocalTorchTrainer if settings.ray_address is None else TorchTrainer
        returned = _fit(_trainer(work, task, kind, workers=workers, gpus=gpus), task.attempt.restarts)
    return _value(returned, task)  # type: ignore[no-any-return]  # Ray has no types


def run_here(work: Callable[[WorkerContext[S_co]], R], task: WorkerTask[S_co]) -> R:
    """Run `work` as the only worker, in this process and without Ray.

    Raises:
        InsufficientResources: This machine cannot provide the workers that were requested.
        TrainerError, ShardError, ClusterError: Raised by `work`.
    """
    lease_local_gpus(task.attempt, task.spec)
    logging.getLogger("ray.train.v2.api.config").setLevel(logging.WARNING)  # it asks to report issues with this mode
    returned = _trainer(work, task, TorchTrainer, workers=0, gpus=0).fit().return_value
    return _value(returned, task)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Returned:
    """What a worker returned, the seconds of each part of its work, and where the features that it read came from."""

    value: Any
    seconds: dict[str, float]
    features: FeatureCounts


def _value(returned: "Returned | Exception", task: WorkerTask[Any]) -> Any:
    """Return what rank 0 returned, or raise its error; add the times of its parts to those of the attempt."""
    if isinstance(returned, Exception):
        raise returned
    task.attempt.times.add(returned.seconds)
    task.attempt.features.add_first(returned.features)
    return returned.value


def run_worker(config: dict[str, Any]) -> "Returned | Exception":
    """Run `config["work"]` on one Ray Train worker; return its result, or an error of ours as a value.

    Ray restarts all workers when one raises. That helps when a worker died or the storage was away, but not when a
    shard is damaged: so a worker with such an error writes it to a file before it raises, and the restarted workers
    return it as a value.
    """
    restrict_umask(umask_setting())  # Ray's processes on a cluster have that of its nodes
    task: WorkerTask[Any] = config["task"]
    error_file = task.paths.scratch / f"fault-{task.attempt.number}.json"
    if error_file.exists():
        kept = read_json_object(error_file)
        return (StorageFull if kept["full"] else TrainerError)(kept["error"])
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    stack_dumps.enable()
    try:
        return _run(config["work"], task)
    except RAISED_ON_ALL_RANKS as error:
        return error
    except OUR_ERRORS as error:
        # The type says what another try would meet, because pickling loses the cause.
        fault = infrastructure_fault(error) or storage_full(error)
        if not isinstance(fault, InfrastructureError):
            _keep(fault or error, error_file)
        if fault is None or isinstance(error, StorageAway):
            raise
        raise fault from error


def _run(work: Callable[[WorkerContext[S_co]], Any], task: WorkerTask[S_co]) -> Returned:
    context = WorkerContext.of(task)
    try:
        value = work(context)
        context.progress.times.stop()
        return Returned(value, context.progress.times.seconds, context.progress.features)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(context) from error
    finally:
        context.watchdog.cancel()


def _keep(error: Exception, file: Path) -> None:
    with suppress(OSError):  # the storage is away or full: the restarted workers find out themselves
        file.parent.mkdir(exist_ok=True)  # no parents: an unmounted storage stays empty
        write_json(file, {"error": " ".join(str(error).split()), "full": isinstance(error, StorageFull)})


def _trainer(
    work: Callable[[WorkerContext[S_co]], Any],
    task: WorkerTask[S_co],
    kind: type[TorchTrainer],
    *,
    workers: int | tuple[int, int],
    gpus: int,
) -> TorchTrainer:
    """Return Ray's trainer of so many workers; a pair is the smallest and the largest number (an elastic group)."""
    attempt = task.attempt
    return kind(
        run_worker,
        train_loop_config={"work": work, "task": replace(task, gpus_of_machine=gpus_of_machine())},
        torch_config=GroupConfig(timeout_s=round(task.hang_seconds)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=bool(gpus), elastic_resize_monitor_interval_s=RESIZE_SECONDS
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{attempt.number}",
            storage_path=str(task.paths.scratch),
            failure_config=ray.train.FailureConfig(max_failures=attempt.restarts),
        ),
    )


def _fit(trainer: TorchTrainer, max_restarts: int) -> Any:
    try:
        return trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        meanings = dict[int, TrainerError]()
        for rank, cause in sorted(error.worker_failures.items()):
            raised = getattr(cause, "_base_exc", cause)
            meaning = None if isinstance(raised, OUR_ERRORS) else infrastructure_error(cause)
            if not isinstance(meaning, InfrastructureError):  # the others only lost their connection to this worker
                raise meaning or raised from error
            meanings[rank] = meaning
        rank, last = next(iter(meanings.items()))
        raise WorkersLost(f"worker {rank} was lost {max_restarts + 1} times; the last time: {last}") from error


@contextmanager
def ray_session(attempt: Attempt, spec: Spec, *, stop_reason: Callable[[], str | None] | None = None) -> Iterator[int]:
    """Connect to the cluster, or start Ray on this machine; yield the number of GPUs per worker.

    Inside another such block, or in an actor, the Ray that runs already is used and not shut down. A Ray on this
    machine has the GPUs that the run leases.

    Args:
        attempt: The run; its progress says what it waits for.
        spec: How many workers there are, and whether they use GPUs.
        stop_reason: Returns why to stop waiting for a cluster, or None; by default the request to stop the run.

    Raises:
        InsufficientResources: The cluster or this machine has no room for the workers.
        Stopped: The run was asked to stop while it waited.
    """
    settings = attempt.settings
    if ray.is_initialized():
        yield _cluster_gpus(settings, spec)
        return
    try:
        if settings.ray_address is not None:
            ray.init(address=settings.ray_address, log_to_driver=True)
            gpus = _cluster_gpus(settings, spec)
            _wait_for_cluster(attempt, spec, gpus, VisibleWait(attempt, stop_reason))
            yield gpus
            return
        machine, gpus = lease_local_gpus(attempt, spec)
        logger.info("starting Ray on this machine")
        with session_folder() as folder:
            _start_ray(machine, folder)
            yield gpus
            _shutdown_ray()
    finally:
        _shutdown_ray()


def _wait_for_cluster(attempt: Attempt, spec: Spec, gpus: int, wait: VisibleWait) -> None:
    """Wait until the cluster has room for the workers without which the run does not start.

    Raises:
        InsufficientResources: It had none for `NIGHTSHIFT_GPU_WAIT_SECONDS`.
        Stopped: The run was asked to stop while it waited.
    """
    wait_for_room(spec.required_workers, gpus, wait, limit_seconds=attempt.settings.gpu_wait_seconds)
    wait.ended()


def _start_ray(machine: Machine, folder: str) -> None:
    """Start Ray on this machine; retry if its processes do not start in the 30 seconds that Ray gives them.

    Raises:
        InfrastructureError: Ray does not start.
    """
    for tries_left in reversed(range(start_tries())):
        try:
            with forking_python(folder), starting_for_one_run():
                ray.init(
                    num_cpus=machine.cpus,
                    num_gpus=machine.gpus,
                    include_dashboard=False,
                    runtime_env={
                        "worker_process_setup_hook": "trainer.distributed.ray_worker_setup.set_own_ray_address"
                    },
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=True,
                    _temp_dir=folder,
                )
            return
        except Exception as error:
            meaning = infrastructure_error(error)
            if not isinstance(meaning, InfrastructureError) or not tries_left:
                raise meaning or error from error
            logger.warning("%s; trying again", meaning)
            _shutdown_ray()


def start_tries() -> int:
    """Return how often to try to start Ray: once more for each runnable process per core, at most `MAX_START_TRIES`."""
    load = os.getloadavg()[0] / max(1, os.cpu_count() or 1)
    return min(MAX_START_TRIES, 2 + int(load))


def _shutdown_ray() -> None:
    """Shut Ray down, or disconnect from the cluster.

    If the garbage collector of another thread frees Ray handles during the shutdown, Ray ends the whole process: so
    they are collected before, and garbage collection is off meanwhile.
    """
    if not ray.is_initialized():
        return
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def _cluster_gpus(settings: Settings, spec: Spec) -> int:
    """Return 0 or 1. A cluster that scaled its GPU nodes to zero needs the setting: Ray sees no GPUs there."""
    if spec.gpus_per_worker != "auto":
        return int(spec.gpus_per_worker)
    have = cluster_capacity(settings, "GPU")
    if have:
        refuse_fewer_gpus(
            spec.required_workers, have, "the cluster has", ", or set NIGHTSHIFT_CLUSTER_GPUS if it can add nodes"
        )
    return int(have > 0)


def cluster_capacity(settings: Settings, resource: Resource) -> int:
    """Return how much of a resource the Ray cluster has, or can have as far as the settings say."""
    if resource == "GPU" and settings.cluster_gpus is not None:
        return settings.cluster_gpus
    return int(ray.cluster_resources().get(resource, 0))
