"""A trial of a search that trains the backbone too: the same run as `train`'s, in a folder of its own.

Ray Tune's actor only drives: it holds no CPU when the training has workers of its own, so that drivers can never take
the last CPU from the workers they wait for.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field
from ray import tune

from cluster.files import read_lines
from cluster.run_paths import TrialPaths
from cluster.stop_request import StopRequest
from data_shards.index import read_index
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import Stopped
from trainer.search.pause_signal import PauseSignal
from trainer.specs import SearchSpec, TrainSpec
from trainer.training.model_setup import TrainingSetup
from trainer.training.worker import train_model, train_on_worker

LOOK_SECONDS = 0.2
STOP_SECONDS = 300.0  # for a training that was told to stop; a worker that hangs is ended by Ray before

Work: TypeAlias = Callable[[WorkerContext[Any]], Any]

logger = logging.getLogger(__name__)


def trial_folder(checkpoints: Path, number: int) -> Path:
    """Return where a trial keeps what it goes on from."""
    return checkpoints / f"trial-{number:06d}"


class RunTrainable(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """One configuration as a training of its own, whose epochs are read from its `metrics.jsonl`."""

    def setup(self, config: dict[str, Any], task: WorkerTask[SearchSpec], threads: int, slots: int) -> None:  # noqa: ARG002
        """Begin, or go on with, the trial that `config` names."""
        self.task = task
        self.training: Training | None = None
        self.pause = PauseSignal(task.attempt.paths, task.attempt.number)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process, once the one before has let go of its workers."""
        self.cleanup()
        self.assignment, self.reported = new_config, 0
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the end of the next epoch and return its figures."""
        if self.training is None:
            folder = trial_folder(self.task.attempt.paths.checkpoints, self.assignment["trial"])
            spec = self.task.spec.trial_spec(self.assignment["config"])
            self.training = Training(order_in(TrialPaths(folder), self.task, spec), train_on_worker)
        while True:
            ended = self.training.has_ended()  # before the file is read: its last line stands there by then
            line = next((one for one in self.training.lines() if one["epoch"] > self.reported), None)
            if line is not None:
                self.reported = line["epoch"]
                return self._report(line)
            if ended:
                return self.training.outcome() | {"done": True}
            if self.pause.reason():
                self.training.stop()
            time.sleep(LOOK_SECONDS)

    def cleanup(self) -> None:
        """Let the training end after a checkpoint; Tune stops a trial in the middle when it lags behind."""
        if self.training is not None:
            self.training.stop()
            self.training.join()
            self.training = None

    def _report(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self.training is not None  # noqa: S101
        value = line.get(f"valid_{self.task.spec.best_by}")
        if value is None:
            self.training.stop()
            return {"failed": f"{self.task.spec.best_by} is undefined on the valid split", "done": True}
        return line | {"value": float(value), "spread": None, "candidate": self.training.candidate(line), "done": False}


def order_in(trial: TrialPaths, task: WorkerTask[SearchSpec], spec: TrainSpec) -> WorkerTask[TrainSpec]:
    """Return a search's order to train in a folder of its own."""
    longest = read_index(spec.shards).longest_shard
    return WorkerTask(attempt=task.attempt, spec=spec, source=task.source, longest_shard=longest, trial=trial)


class Training:
    """A training in a thread, and its folder; `work` runs on its workers."""

    def __init__(self, task: WorkerTask[TrainSpec], work: Work) -> None:
        self.task, self.work, self.paths = task, work, task.paths
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        self.paths.stop.unlink(missing_ok=True)  # it was meant for an attempt that is over
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._train, name=self.paths.folder.name, daemon=True)
        self.thread.start()

    def _train(self) -> None:
        try:
            run_on_workers(self.work, self.task)
        except Exception as error:  # told as the trial's result
            self.error = error

    def has_ended(self) -> bool:
        """Whether it came to its end, or to grief."""
        return not self.thread.is_alive()

    def lines(self) -> list[dict[str, Any]]:
        """Return the figures of the epochs behind."""
        return list(read_lines(self.paths.metrics))

    def candidate(self, line: dict[str, Any]) -> str | None:
        """Return where the epoch's model is, when it is the trial's best so far."""
        if not line["best"]:
            return None
        folder = self.paths.checkpoints / f"best-{line['epoch']:06d}"
        return str(folder.relative_to(self.paths.folder.parent))

    def stop(self) -> None:
        """Ask it to save a checkpoint and end."""
        StopRequest("window", self.task.attempt.number).publish(self.paths.stop)

    def join(self) -> None:
        """Wait until it has ended."""
        self.thread.join(STOP_SECONDS)

    def outcome(self) -> dict[str, Any]:
        """Return how it ended; its last epoch once more when it came to its end."""
        if isinstance(self.error, Stopped):
            return {"paused": True}
        if self.error is not None:
            logger.error("%s: %s", self.paths.folder.name, self.error)
            return {"failed": " ".join(str(self.error).split()) or type(self.error).__name__}
        last = self.lines()[-1]
        return last | {"why": "epochs" if last["epoch"] >= last["epochs"] else "patience"}


class EpochStepSpec(TrainSpec):
    """A training that ends after `until_epoch`, on the learning rates of one of all `epochs`."""

    until_epoch: Annotated[int, Field(ge=1)]

    @property
    def last_epoch(self) -> int:
        """Where the lap ends."""
        return self.until_epoch


def epoch_step_on_worker(context: WorkerContext[EpochStepSpec]) -> int:
    """Resume from the newest checkpoint, train, and return the number of completed epochs."""
    return train_model(TrainingSetup.fresh(context)).epoch
