"""A trial of a search that trains the backbone too, once for each of several seeds, an epoch of each in turn.

In turn and not one after the other: so an epoch's value is the mean over all seeds from the first epoch on, and a
trial that lags behind is ended before it has cost a whole training of each.
"""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from cluster.files import read_json, read_lines
from cluster.run_paths import TrialPaths
from trainer.distributed.worker import WorkerTask
from trainer.model.checkpoint_folder import latest_valid_checkpoint, read_tensors, write_checkpoint_folder
from trainer.search.head_trainable import candidate_name, mean_of
from trainer.search.run_trainable import (
    LOOK_SECONDS,
    EpochStepSpec,
    RunTrainable,
    Training,
    epoch_step_on_worker,
    order_in,
    trial_folder,
)
from trainer.specs import SearchSpec, build
from trainer.specs.metric import is_better
from trainer.training.checkpointer import MODULE, TRAIN_STATE
from trainer.training.ema import EMA
from trainer.training.train_state import TrainState

AVERAGED = "module."  # what torch puts before the names of averaged tensors


class RepeatedRunTrainable(RunTrainable):
    """One configuration as several trainings, whose checkpoints carry them from lap to lap."""

    def step(self) -> dict[str, Any]:
        """Train one epoch of each and return the mean of their figures."""
        began, epoch = time.monotonic(), self.reported + 1
        repeats = [_Repeat(self.task, self.assignment, number) for number in range(self.task.spec.repeats)]
        for repeat in repeats:
            if not repeat.has_reached(epoch):
                self.training = repeat.epoch_step(epoch)
                trouble = self._ended_badly()
                if trouble:
                    return trouble | {"done": True}
        self.reported = epoch
        return self._mean(repeats, time.monotonic() - began)

    def _ended_badly(self) -> dict[str, Any] | None:
        """Wait for the lap's end; return what came in between."""
        assert self.training is not None  # noqa: S101
        while not self.training.has_ended():
            if self.pause.reason():
                self.training.stop()
            time.sleep(LOOK_SECONDS)
        training, self.training = self.training, None
        return None if training.error is None else training.outcome()

    def _mean(self, repeats: list["_Repeat"], seconds: float) -> dict[str, Any]:
        spec, name = self.task.spec, f"valid_{self.task.spec.best_by}"
        lines = [repeat.line(self.reported) for repeat in repeats]
        values = [line[name] for line in lines]
        if None in values:
            return {"failed": f"{spec.best_by} is undefined on the valid split", "done": True}
        value = statistics.fmean(values)
        done = all(repeat.is_over(self.reported) for repeat in repeats)
        return mean_of(lines) | {
            "epoch": self.reported,
            "seconds": seconds,
            "value": value,
            "spread": statistics.pstdev(values),
            "candidate": self._candidate(value, values, repeats),
            "done": done,
            "why": "epochs" if self.reported >= spec.epochs else "patience",
        }

    def _candidate(self, value: float, values: list[float], repeats: list["_Repeat"]) -> str | None:
        """Keep the model of the best seed when the mean may be the best of the search; return the folder's name."""
        value_to_beat, metric = self.assignment.get("value_to_beat"), self.task.spec.best_by
        if value_to_beat is not None and not is_better(value, value_to_beat, metric):
            return None
        self.assignment["value_to_beat"] = value
        best = 0
        for number, found in enumerate(values):
            best = number if is_better(found, values[best], metric) else best
        name = candidate_name(self.assignment["trial"], self.reported)
        about = {"attempt": self.task.attempt.number}
        folder = self.task.attempt.paths.checkpoints / name
        write_checkpoint_folder(folder, tensors={MODULE: repeats[best].tensors()}, json_files={}, manifest=about)
        return name


class _Repeat:
    """The training with one of the seeds: a folder of its own within the trial's."""

    def __init__(self, task: WorkerTask[SearchSpec], assignment: dict[str, Any], number: int) -> None:
        trial = trial_folder(task.attempt.paths.checkpoints, assignment["trial"])
        self.search, self.paths = task, TrialPaths(trial / f"repeat-{number}")
        spec = task.spec.trial_spec(assignment["config"])
        self.spec = spec.model_copy(update={"seed": spec.seed + number})

    def epoch_step(self, epoch: int) -> Training:
        """Begin to train up to the end of an epoch."""
        shutil.rmtree(self.paths.scratch, ignore_errors=True)  # Ray's notes of the lap before, which is over
        spec = build(EpochStepSpec, **self.spec.model_dump(exclude={"kind"}), until_epoch=epoch)
        return Training(order_in(self.paths, self.search, spec), epoch_step_on_worker)

    def has_reached(self, epoch: int) -> bool:
        """Whether a checkpoint stands at the end of the epoch or later, or patience ended the training before."""
        found = self._newest()
        return found is not None and (_position(found).epoch >= epoch or self.is_over(0))

    def is_over(self, epoch: int) -> bool:
        """Whether the training has no epoch left after this one."""
        found, spec = self._newest(), self.spec
        since = 0 if spec.freeze == "all" else spec.head_epochs
        out = found is not None and _position(found).should_stop_early(spec.patience, since=since)
        return epoch >= spec.epochs or out

    def line(self, epoch: int) -> dict[str, Any]:
        """Return the figures of an epoch; of a training that is over, those of its last."""
        lines: list[dict[str, Any]] = [line for line in read_lines(self.paths.metrics) if line["epoch"] <= epoch]
        return lines[-1]

    def tensors(self) -> dict[str, Any]:
        """Return the model at its newest checkpoint: what its validation has judged."""
        found = self._newest()
        assert found is not None  # noqa: S101
        if not (found / EMA).exists():
            return read_tensors(found / MODULE)
        averaged = read_tensors(found / EMA)
        return {name.removeprefix(AVERAGED): value for name, value in averaged.items() if name.startswith(AVERAGED)}

    def _newest(self) -> Path | None:
        return latest_valid_checkpoint(self.paths.checkpoints)


def _position(checkpoint: Path) -> TrainState:
    return TrainState.from_json(read_json(checkpoint / TRAIN_STATE))
