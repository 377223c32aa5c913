"""What the driver hands to each Ray Train worker, and how a worker's trouble comes back."""

import faulthandler
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from cluster.errors import ClusterError
from cluster.files import read_json, write_json
from cluster.resources import this_machine
from cluster.run_paths import TrainingPaths, TrialPaths
from cluster.stop_request import StopWatcher
from data_shards.errors import ShardError
from data_shards.read.shard_cache import limit_default_cache
from trainer.attempt import Attempt
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import OutOfMemory, Stopped, TrainerError, TrainingDiverged
from trainer.progress import Progress

OURS = (TrainerError, ShardError, ClusterError)
SLOWEST_IMAGE_SECONDS = 0.2  # decoding and forward at 224 pixels on one old core
LOADER_WORKERS = 12  # a GPU takes about so many cores' worth of decoded films
SHARED = (Stopped, TrainingDiverged)  # raised on every rank at the same place

S = TypeVar("S")


DUMP_AT_FRACTION = 0.8  # of the time after which a collective gives up: the stacks must be told before the process ends


REARM_SECONDS = 1.0


@dataclass
class Watchdog:
    """Prints all stacks to stderr, which is the run's log, unless `reset` is called in time; by default never."""

    hang_seconds: float = math.inf
    _patted: float = float("-inf")

    def reset(self) -> None:
        """Say that there is headway."""
        if self.hang_seconds < math.inf and time.monotonic() - self._patted >= REARM_SECONDS:
            self._patted = time.monotonic()
            faulthandler.dump_traceback_later(self.hang_seconds * DUMP_AT_FRACTION, file=sys.__stderr__ or sys.stderr)

    def cancel(self) -> None:
        """Watch no longer."""
        faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True, kw_only=True)
class WorkerTask(Generic[S]):
    """One run's wish on its way to a worker.

    Attributes:
        source: File of weights or folder of a model, found by the driver; None for random weights.
        longest_shard: Samples of the largest shard; other workers wait while one computes its features.
        trial: Where a training inside a search keeps its files; None keeps them with the run's.
    """

    attempt: Attempt
    spec: S
    source: Path | None
    longest_shard: int = 0
    trial: TrialPaths | None = None

    @property
    def paths(self) -> TrainingPaths:
        """Where the training keeps its files."""
        return self.attempt.paths if self.trial is None else self.trial

    @property
    def hang_seconds(self) -> float:
        """Workers that wait for each other longer than this hang."""
        return self.attempt.settings.hang_seconds + self.longest_shard * SLOWEST_IMAGE_SECONDS


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """A worker's place of work: who it is and whom it tells."""

    task: WorkerTask[Any]
    process_group: ProcessGroup
    progress: Progress
    stop: StopWatcher
    watchdog: Watchdog = field(default_factory=Watchdog)

    def count(self, images: int) -> None:
        """Tell of images that all workers together have done."""
        self.watchdog.reset()
        self.progress.add(images)

    @property
    def loader_workers(self) -> int:
        """Processes that decode for this worker; on a CPU the network itself needs all there is."""
        if self.process_group.device.type == "cpu":
            return 0
        return max(1, min(LOADER_WORKERS, this_machine().cpus // self.process_group.workers_on_node - 1))

    @classmethod
    def of(cls, task: WorkerTask[Any]) -> "WorkerContext":
        """Take the post on this worker."""
        process_group, attempt = ProcessGroup.of_this_worker(on_cpu=task.spec.gpus_per_worker == 0), task.attempt
        limit_default_cache(attempt.settings.shard_cache_bytes)
        if process_group.world_size == 1 and process_group.device.type == "cpu":
            torch.set_num_threads(this_machine().cpus)
        return cls(
            task=task,
            process_group=process_group,
            progress=Progress(task.paths, attempt.number, writes=process_group.is_rank_zero),
            stop=StopWatcher(task.paths.stop, attempt.number),
            watchdog=Watchdog(task.hang_seconds),
        )


def in_worker(work: Callable[[WorkerContext], Any], config: dict[str, Any]) -> Any:
    """Do the work and return its result, or our own error as a value.

    Ray starts all workers again when one raises. That helps against a death but not against a damaged shard: so the
    worker that meets one leaves a note before it raises, and the workers started again return what the note says.
    """
    task: WorkerTask[Any] = config["task"]
    note = task.paths.scratch / f"fault-{task.attempt.number}.json"
    if note.exists():
        return TrainerError(read_json(note))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    context = WorkerContext.of(task)
    try:
        return _ours(work, context)
    except SHARED as error:
        return error
    except OURS as error:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, " ".join(str(error).split()))
        raise
    finally:
        context.watchdog.cancel()


def _ours(work: Callable[[WorkerContext], Any], context: WorkerContext) -> Any:
    """Do the work; memory that is spent becomes an error of ours, which says what would fit."""
    try:
        return work(context)
    except torch.OutOfMemoryError as error:
        size = context.task.spec.batch_size
        raise OutOfMemory(
            f"a batch of {size} images over {context.process_group.world_size} workers does not fit into the memory of "
            f"{context.process_group.device}; use --batch-size {size // 2} or more workers"
        ) from error
