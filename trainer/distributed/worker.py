"""What the driver sends to each Ray Train worker, and what that worker knows about itself."""

import faulthandler
import logging
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import ray
import torch

from cluster.process_env import openmp_threads
from cluster.resources import cpu_count
from cluster.run_paths import TrainingPaths, TrialPaths
from cluster.shared_memory import free_shared_memory, require_shared_memory
from cluster.stop_request import GPU_SECONDS, StopWatcher
from data_shards.read.shard_cache import limit_default_cache
from trainer.attempt import Attempt
from trainer.distributed.process_group import ProcessGroup
from trainer.model.precision import compute_in_float32
from trainer.progress import Progress
from trainer.specs import EvaluateSpec, PredictSpec, TrainOptions

SECONDS_PER_IMAGE = 0.2  # decoding and forward of a 224 pixel image on one old CPU core, the slowest case
MAX_LOADER_WORKERS = 12  # about as many cores as it takes to decode X-rays for one GPU
DUMP_AT_FRACTION = 0.8  # of the collectives' timeout: the stacks must be in the log before the process ends
REARM_SECONDS = 1.0

logger = logging.getLogger(__name__)

S_co = TypeVar("S_co", bound=TrainOptions | EvaluateSpec | PredictSpec, covariant=True)


@dataclass
class Watchdog:
    """Dumps the stacks of all threads to stderr, the run's log, unless `reset` is called in time; off by default."""

    hang_seconds: float = math.inf
    _armed_at: float = float("-inf")

    def reset(self) -> None:
        """Report progress: start the timer again."""
        if self.hang_seconds < math.inf and time.monotonic() - self._armed_at >= REARM_SECONDS:
            self._armed_at = time.monotonic()
            faulthandler.dump_traceback_later(self.hang_seconds * DUMP_AT_FRACTION, file=sys.__stderr__ or sys.stderr)

    def cancel(self) -> None:
        """Stop the timer."""
        faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True, kw_only=True)
class WorkerTask(Generic[S_co]):
    """What one group of workers has to do; the driver sends it to each of them.

    Attributes:
        source: Weights file or model folder, found by the driver; None means random weights.
        longest_shard: Number of samples in the largest shard; other workers wait while one extracts its features.
        extracts: Whether to compute missing features of several shards of a split; those of one shard, which cannot be
            divided among workers, are always computed.
        trial: Where a training inside a search keeps its files; None means the run's own folder.
        gpus_of_machine: GPUs whose workers share the CPUs of this machine; 0 if only those that CUDA shows.
    """

    attempt: Attempt
    spec: S_co
    source: Path | None
    longest_shard: int = 0
    extracts: bool = True
    trial: TrialPaths | None = None
    gpus_of_machine: int = 0

    @property
    def paths(self) -> TrainingPaths:
        """Where the training keeps its files."""
        return self.attempt.paths if self.trial is None else self.trial

    @property
    def hang_seconds(self) -> float:
        """Timeout of collectives: workers that wait longer than this for each other hang."""
        return self.attempt.settings.hang_seconds + self.longest_shard * SECONDS_PER_IMAGE


@dataclass(frozen=True, kw_only=True)
class WorkerContext(Generic[S_co]):
    """The environment of one worker: its task, its rank and device, its progress file and stop request."""

    task: WorkerTask[S_co]
    process_group: ProcessGroup
    progress: Progress
    stop: StopWatcher
    watchdog: Watchdog = field(default_factory=Watchdog)

    @classmethod
    def of(cls, task: WorkerTask[S_co]) -> "WorkerContext[S_co]":
        """Return the context of the Ray Train worker that calls this."""
        process_group, attempt = ProcessGroup.of_this_worker(on_cpu=task.spec.gpus_per_worker == 0), task.attempt
        limit_default_cache(attempt.settings.shard_cache_bytes)
        on_gpu = process_group.device.type == "cuda"
        if on_gpu:
            require_shared_memory()  # of this machine; the driver may be on another
            compute_in_float32()
        threads = openmp_threads()
        if process_group.world_size == 1 and process_group.device.type == "cpu":
            # In a Ray worker it may be Ray's value for a single CPU, but no other worker needs the others.
            torch.set_num_threads(cpu_count() if ray.is_initialized() or threads is None else threads)
        elif threads is not None:
            torch.set_num_threads(threads)  # Ray set it for this worker, maybe after torch was imported
        if task.spec.is_elastic and process_group.is_rank_zero:
            logger.info("training with %d of at most %d workers", process_group.world_size, task.spec.workers)
        return cls(
            task=task,
            process_group=process_group,
            progress=Progress(
                task.paths,
                attempt.lease,
                writes=process_group.is_rank_zero,
                hang_seconds=task.hang_seconds,
                gpus=process_group.world_size if on_gpu else 0,
            ),
            stop=StopWatcher(task.paths.stop, attempt.number, every_seconds=GPU_SECONDS if on_gpu else 0.0),
            watchdog=Watchdog(task.hang_seconds),
        )

    @property
    def spec(self) -> S_co:
        """What was requested."""
        return self.task.spec

    @property
    def loader_workers(self) -> int:
        """DataLoader processes for this worker; 0 on a CPU, where the network needs all cores."""
        if self.process_group.device.type == "cpu":
            return 0
        return max(1, min(MAX_LOADER_WORKERS, cpu_count() // self._sharing - 1))

    @property
    def prefetch_bytes(self) -> int | None:
        """Shared memory that the prefetched batches of this worker may fill: half of the free one, over all workers."""
        free = free_shared_memory()
        return None if free is None else free // (2 * self._sharing)

    @property
    def _sharing(self) -> int:
        """Workers that share this machine, those of other runs included."""
        return max(self.process_group.workers_on_node, self.task.gpus_of_machine)

    def add_images(self, images: int) -> None:
        """Count images that all workers together have processed, and reset the watchdog."""
        self.watchdog.reset()
        self.progress.add(images)

    def add_step(self) -> None:
        """Count a step that completes no image, and reset the watchdog."""
        self.watchdog.reset()
        self.progress.add_step()
