"""Ray for one run: started here and ended with the run, or the cluster that this process was started in."""

import gc
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import RayTrainError

from cluster.resources import gpus_per_worker, refuse_impossible, this_machine
from cluster.settings import Settings
from trainer.distributed.worker import WorkerTask
from trainer.errors import WorkersLost
from trainer.specs import Spec

OBJECT_STORE_BYTES = 128 * 2**20  # nothing large goes through Ray; samples and checkpoints are files

Loop: TypeAlias = Callable[[dict[str, Any]], Any]

logger = logging.getLogger(__name__)


def run_on_workers(loop: Loop, task: WorkerTask[Any], spec: Spec) -> Any:
    """Run `loop({"task": order})` on the wished number of Ray Train workers and return what the leading one returned.

    One worker on this machine runs in this process, which spares half a minute of starting actors.

    Raises:
        ResourcesShort: This machine can never give the workers.
        TrainerError, ShardError, ClusterError: What a worker raised.
    """
    settings = task.attempt.settings
    if settings.ray_address is None and spec.workers == 1:
        refuse_impossible(workers=1, gpus_per_worker=spec.gpus_per_worker, machine=this_machine())
        found = _trainer(loop, task, workers=0, gpus=0).fit().return_value
    else:
        with ray_session(settings, spec) as gpus:
            found = _fit(_trainer(loop, task, workers=spec.workers, gpus=gpus), task.attempt.restarts)
    if isinstance(found, Exception):
        raise found
    return found


def _trainer(loop: Loop, task: WorkerTask[Any], *, workers: int, gpus: int) -> TorchTrainer:
    attempt = task.attempt
    return TorchTrainer(
        loop,
        train_loop_config={"task": task},
        torch_config=TorchConfig(timeout_s=round(task.hang_seconds)),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=bool(gpus)),
        run_config=ray.train.RunConfig(
            name=f"attempt-{attempt.number}",
            storage_path=str(task.paths.scratch),
            failure_config=ray.train.FailureConfig(max_failures=attempt.restarts),
        ),
    )


def _fit(trainer: TorchTrainer, most: int) -> Any:
    try:
        return trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        causes = {rank: getattr(cause, "_base_exc", cause) for rank, cause in sorted(error.worker_failures.items())}
        for cause in causes.values():
            if not _is_infrastructure(cause):
                raise cause from error
        rank, cause = next(iter(causes.items()))
        raise WorkersLost(f"worker {rank} was lost {most + 1} times, at last by: {_first_line(cause)}") from error


def _is_infrastructure(cause: Exception) -> bool:
    """Return whether a worker died or waited in vain for one that did, as opposed to raising by itself."""
    if isinstance(cause, ray.exceptions.RayError | RayTrainError):
        return True
    return isinstance(cause, RuntimeError) and any(name in str(cause).lower() for name in ("gloo", "nccl", "timed out"))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def ray_session(settings: Settings, spec: Spec) -> Iterator[int]:
    """Connect to the cluster, or start Ray on this machine; yield the GPUs of each worker.

    Within another such block, or in an actor, the Ray that is there serves, and stays.
    """
    if ray.is_initialized():
        yield _cluster_gpus(settings, spec)
        return
    try:
        if settings.ray_address is not None:
            ray.init(address=settings.ray_address, log_to_driver=True)
            yield _cluster_gpus(settings, spec)
            return
        machine = this_machine()
        refuse_impossible(workers=spec.workers, gpus_per_worker=spec.gpus_per_worker, machine=machine)
        # Sockets of Ray live below this folder, and a socket's path holds 107 bytes at most.
        with tempfile.TemporaryDirectory(prefix="ns-", ignore_cleanup_errors=True) as folder:
            ray.init(
                num_cpus=machine.cpus,
                num_gpus=machine.gpus,
                include_dashboard=False,
                runtime_env={"worker_process_setup_hook": "trainer.distributed.ray_logging.quieten_ray"},
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=True,
                _temp_dir=folder,
            )
            yield gpus_per_worker(spec.gpus_per_worker, spec.workers, machine)
            _end_ray()
    finally:
        _end_ray()


def _end_ray() -> None:
    """End Ray, or let go of the cluster.

    Handles of Ray's that another thread frees in this moment, because it collects garbage, make Ray end the whole
    process: so they are freed before, and nobody collects meanwhile.
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
    """Return 0 or 1; a cluster that has let its idle GPUs go must be told of them, for Ray sees none."""
    if spec.gpus_per_worker == "auto":
        known = settings.cluster_gpus
        have = ray.cluster_resources().get("GPU", 0) if known is None else known
        return int(have >= spec.workers)
    return int(spec.gpus_per_worker)
