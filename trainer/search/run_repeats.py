"""A trial that trains the backbone too, once for each of several seeds, in epoch steps: one epoch of each in turn.

In turn and not one after the other: so the value of an epoch is the mean over all seeds from the first epoch on, and
ASHA can stop a trial before it has cost a whole training of each seed.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.files import read_json
from cluster.run_paths import TrialPaths
from trainer.distributed.worker import WorkerTask
from trainer.model.checkpoint_folder import latest_valid_checkpoint, read_tensors
from trainer.search.run_trainable import (
    POLL_SECONDS,
    EpochStepSpec,
    RunTrainable,
    Training,
    epoch_step_on_worker,
    task_in,
)
from trainer.search.trial_files import repeat_folder, write_candidate
from trainer.search.trial_messages import TrialAssignment, TrialEnd, TrialReport, TrialStep, undefined_metric
from trainer.specs import SearchSpec, build
from trainer.specs.metric import is_better, loss_of
from trainer.tracking.history import read_epoch_lines
from trainer.training.checkpointer import MODULE, TRAIN_STATE
from trainer.training.ema import EMA
from trainer.training.train_state import TrainState

AVERAGED = "module."  # torch's prefix for the names of averaged tensors


class RepeatedRunTrainable(RunTrainable):
    """One configuration as several trainings, whose checkpoints carry them from one epoch step to the next."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process."""
        super().reset_config(new_config)
        self.value_to_beat = self.assignment.value_to_beat
        return True

    def _step(self) -> TrialStep:
        """Train one epoch of each repeat and report the mean."""
        began, epoch = time.monotonic(), self.reported + 1
        repeats = [_Repeat(self.task, self.assignment, number) for number in range(self.task.spec.repeats)]
        for repeat in repeats:
            if not repeat.has_reached(epoch):
                self.training = repeat.epoch_step(epoch)
                end = self._early_end(self.training)
                if end is not None:
                    return TrialStep(end=end)
        self.reported = epoch
        return self._mean(repeats, time.monotonic() - began)

    def _early_end(self, training: Training) -> TrialEnd | None:
        """Wait for the end of an epoch step; return the trial's end if the step paused or failed."""
        while not training.has_ended():
            if self.pause.reason():
                training.stop()
            time.sleep(POLL_SECONDS)
        self.training = None
        return None if training.error is None else training.end()

    def _mean(self, repeats: list["_Repeat"], seconds: float) -> TrialStep:
        spec, name = self.task.spec, f"valid_{self.task.spec.best_by}"
        lines = [repeat.line(self.reported) for repeat in repeats]
        values = [float(line[name]) for line in lines if line[name] is not None]
        if len(values) < len(lines):
            return TrialStep(end=TrialEnd.failed(undefined_metric(spec.best_by)))
        report = TrialReport.of_repeats(lines, epoch=self.reported, values=values, candidate=None)
        report = replace(report, seconds=seconds, candidate=self._candidate(report.value, values, repeats))
        is_over = all(repeat.is_over(self.reported) for repeat in repeats)
        why = "epochs" if self.reported >= spec.epochs else "patience"
        return TrialStep(reports=(report,), end=TrialEnd.finished(why) if is_over else None)

    def _candidate(self, value: float, values: list[float], repeats: list["_Repeat"]) -> str | None:
        """Save the best seed's model if the mean may be the best of the search; return the name of its folder."""
        metric, attempt = self.task.spec.best_by, self.task.attempt
        if not is_better(value, self.value_to_beat, metric):
            return None
        self.value_to_beat = value
        best = repeats[min(range(len(values)), key=lambda repeat: loss_of(values[repeat], metric))]
        return write_candidate(
            attempt.paths.checkpoints,
            best.tensors(),
            trial=self.assignment.trial,
            epoch=self.reported,
            lease=attempt.lease,
        )


class _Repeat:
    """The training with one of the seeds, in a folder of its own within the trial's."""

    def __init__(self, task: WorkerTask[SearchSpec], assignment: TrialAssignment, number: int) -> None:
        folder = repeat_folder(task.attempt.paths.checkpoints, assignment.trial, number)
        self.search, self.paths = task, TrialPaths(folder)
        spec = task.spec.trial_spec(assignment.config)
        self.spec = spec.model_copy(update={"seed": spec.seed + number})

    def epoch_step(self, epoch: int) -> Training:
        """Start to train up to the end of an epoch."""
        self.search.attempt.lease.remove(self.paths.scratch)  # Ray's files of the previous epoch step
        spec = build(EpochStepSpec, **self.spec.model_dump(exclude={"kind"}), until_epoch=epoch)
        return Training(task_in(self.paths, self.search, spec), epoch_step_on_worker)

    def has_reached(self, epoch: int) -> bool:
        """Whether it has a checkpoint of the end of the epoch or later, or early stopping ended it before."""
        found = self._newest()
        return found is not None and (_train_state(found).epoch >= epoch or self.is_over(0))

    def is_over(self, epoch: int) -> bool:
        """Whether no epoch follows this one."""
        found, spec = self._newest(), self.spec
        since = 0 if spec.freeze == "all" else spec.head_epochs
        out = found is not None and _train_state(found).should_stop_early(spec.patience, since=since)
        return epoch >= spec.epochs or out

    def line(self, epoch: int) -> dict[str, Any]:
        """Return the metrics of an epoch; of its last epoch if early stopping ended it before."""
        return [line for line in read_epoch_lines(self.paths.metrics) if line["epoch"] <= epoch][-1]

    def tensors(self) -> dict[str, Any]:
        """Return the weights of its newest checkpoint, which the last validation used."""
        found = self._newest()
        assert found is not None  # noqa: S101
        if not (found / EMA).exists():
            return read_tensors(found / MODULE)
        averaged = read_tensors(found / EMA)
        return {name.removeprefix(AVERAGED): value for name, value in averaged.items() if name.startswith(AVERAGED)}

    def _newest(self) -> Path | None:
        return latest_valid_checkpoint(self.paths.checkpoints)


def _train_state(checkpoint: Path) -> TrainState:
    return TrainState.from_json(read_json(checkpoint / TRAIN_STATE))
