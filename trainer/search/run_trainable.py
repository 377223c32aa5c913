"""A trial that trains the backbone too, as Ray Tune runs it: the same training as `train`'s, in the trial's folder.

Ray Tune's actor only drives the training. It holds no CPU when the training has workers of its own, so that drivers
never take the last CPU from the workers they wait for.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import Field
from ray import tune

from cluster.access import restrict_umask
from cluster.run_paths import TrialPaths
from cluster.settings import umask_setting
from cluster.stop_request import StopRequest
from trainer.data.run_data import run_index
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import Stopped, WorkersLost
from trainer.search.trial_files import PauseSignal, trial_folder
from trainer.search.trial_messages import TrialAssignment, TrialEnd, TrialReport, TrialStep, undefined_metric
from trainer.specs import SearchSpec, TrainSpec
from trainer.tracking.history import read_epoch_lines
from trainer.training.model_setup import TrainingSetup
from trainer.training.worker import train_model, train_on_worker

POLL_SECONDS = 0.2
STOP_SECONDS = 300.0  # wait for a training that was asked to stop; Ray ends a worker that hangs before that

Work: TypeAlias = Callable[[WorkerContext[Any]], Any]

logger = logging.getLogger(__name__)


class RunTrainable(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """One configuration as a training of its own, whose epochs are read from its `metrics.jsonl`."""

    def setup(self, config: dict[str, Any], task: WorkerTask[SearchSpec], threads: int, slots: int) -> None:  # noqa: ARG002
        """Start or resume the trial of `config`."""
        restrict_umask(umask_setting())  # Ray's processes on a cluster have that of its nodes
        self.task = task
        self.training: Training | None = None
        self.pause = PauseSignal(task.attempt.paths, task.attempt.number)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process, once the previous one has released its workers."""
        self.cleanup()
        self.assignment, self.reported = TrialAssignment.from_tune(new_config), 0
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the end of the next epoch and report it; a storage that fails ends the attempt, not the trial."""
        try:
            return self._step().to_tune()
        except Exception as error:
            lost = TrialEnd.lost_by(error)
            if lost is None:
                raise
            return TrialStep(end=lost).to_tune()

    def cleanup(self) -> None:
        """Let the training stop after a checkpoint; Tune calls this when it stops a trial early."""
        if self.training is not None:
            self.training.stop()
            self.training.join()
            self.training = None

    def _step(self) -> TrialStep:
        if self.training is None:
            folder = trial_folder(self.task.attempt.paths.checkpoints, self.assignment.trial)
            spec = self.task.spec.trial_spec(self.assignment.config)
            self.training = Training(task_in(TrialPaths(folder), self.task, spec), train_on_worker)
        while True:
            ended = self.training.has_ended()  # before the file is read: then the file has its last line
            line = next((one for one in self.training.lines() if one["epoch"] > self.reported), None)
            is_whole = ended and self.training.error is None
            if line is not None and (is_whole or self.training.has_saved(line)):
                self.reported = line["epoch"]
                return self._report(self.training, line)
            if ended:
                return TrialStep(end=self.training.end())
            if self.pause.reason():
                self.training.stop()
            time.sleep(POLL_SECONDS)

    def _report(self, training: "Training", line: dict[str, Any]) -> TrialStep:
        value = line.get(f"valid_{self.task.spec.best_by}")
        if value is None:
            training.stop()
            return TrialStep(end=TrialEnd.failed(undefined_metric(self.task.spec.best_by)))
        report = TrialReport.of_repeats(
            [line], epoch=line["epoch"], values=[float(value)], candidate=training.candidate(line)
        )
        return TrialStep(reports=(report,))


def task_in(trial: TrialPaths, task: WorkerTask[SearchSpec], spec: TrainSpec) -> WorkerTask[TrainSpec]:
    """Return the task of training `spec` in a folder of its own."""
    longest = run_index(task.attempt.lease, spec.shards).longest_shard
    return WorkerTask(attempt=task.attempt, spec=spec, source=task.source, longest_shard=longest, trial=trial)


class Training:
    """A training in a thread, and its folder; `work` runs on its workers."""

    def __init__(self, task: WorkerTask[TrainSpec], work: Work) -> None:
        self.task, self.work, self.paths = task, work, task.paths
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        StopRequest.remove(self.paths.stop)
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._train, name=self.paths.folder.name, daemon=True)
        self.thread.start()

    def _train(self) -> None:
        try:
            run_on_workers(self.work, self.task)
        except Exception as error:  # reported as the trial's end
            self.error = error

    def has_ended(self) -> bool:
        """Whether it finished or failed."""
        return not self.thread.is_alive()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`, one per finished epoch."""
        return read_epoch_lines(self.paths.metrics)

    def candidate(self, line: dict[str, Any]) -> str | None:
        """Return the folder of the epoch's model if the epoch is the trial's best so far."""
        if not line["best"]:
            return None
        folder = self.paths.checkpoints / f"best-{line['epoch']:06d}"
        return str(folder.relative_to(self.paths.folder.parent))

    def has_saved(self, line: dict[str, Any]) -> bool:
        """Whether the model of the line's epoch can be read: the line is written first, the checkpoint after it."""
        candidate = self.candidate(line)
        if candidate is None or (self.paths.folder.parent / candidate).exists():
            return True
        return bool(self.lines()[-1]["epoch"] > line["epoch"])  # a later best has replaced it

    def stop(self) -> None:
        """Ask it to save a checkpoint and stop."""
        StopRequest("window", self.task.attempt.number).publish(self.paths.stop)

    def join(self) -> None:
        """Wait until it has ended."""
        self.thread.join(STOP_SECONDS)

    def end(self) -> TrialEnd:
        """Return how it ended."""
        if isinstance(self.error, Stopped):
            return TrialEnd.paused()
        if self.error is not None:
            logger.error("%s: %s", self.paths.folder.name, self.error)
            if not isinstance(self.error, WorkersLost) and (lost := TrialEnd.lost_by(self.error)):
                return lost
            return TrialEnd.failed(str(self.error) or type(self.error).__name__)
        last = self.lines()[-1]
        return TrialEnd.finished("epochs" if last["epoch"] >= last["epochs"] else "patience")


class EpochStepSpec(TrainSpec):
    """An epoch step: a training that stops after `until_epoch`, with the learning rate schedule of all `epochs`."""

    until_epoch: Annotated[int, Field(ge=1)]

    @property
    def last_epoch(self) -> int:
        """The epoch that the step stops after."""
        return self.until_epoch


def epoch_step_on_worker(context: WorkerContext[EpochStepSpec]) -> int:
    """Resume from the newest checkpoint, train, and return the number of completed epochs."""
    return train_model(TrainingSetup.fresh(context)).epoch
