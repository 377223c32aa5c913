"""A trial of a search over a frozen backbone, as Ray Tune runs it: heads on stored features, an epoch a step."""

import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from trainer.distributed.worker import WorkerTask
from trainer.errors import Stopped, TrainerError
from trainer.search.asha import rungs_of
from trainer.search.head_training import HeadTraining, HeadTrainingData
from trainer.search.pause_signal import PauseSignal
from trainer.search.run_trainable import trial_folder
from trainer.specs import SearchSpec
from trainer.specs.metric import is_better

logger = logging.getLogger(__name__)

TELL_SECONDS = 0.25  # between two results of a trial

_benches: dict[str, HeadTrainingData] = {}  # of this process: an actor serves many trials and reads the features once


class HeadTrainable(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """One configuration, trained once for each repeat; nothing of it goes through Ray but numbers."""

    def setup(self, config: dict[str, Any], task: WorkerTask[SearchSpec], threads: int, slots: int) -> None:
        """Begin, or go on with, the trial that `config` names."""
        torch.set_num_threads(threads)
        self.task, self.slots = task, slots
        self.pause = PauseSignal(task.attempt.paths, task.attempt.number)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process."""
        self.assignment = new_config
        self.heads: list[HeadTraining] = []
        self.before: list[dict[str, Any]] = []
        return True

    def step(self) -> dict[str, Any]:
        """Train until there is something to tell; trouble of the trial's own becomes its result.

        So the process serves the next trial.
        """
        self.before = []
        return self._told() | {"before": self.before}

    def _told(self) -> dict[str, Any]:
        try:
            return self._epochs()
        except Stopped:
            for head in self.heads:
                head.save_last_epoch()
            return {"paused": True, "done": True}
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return _failure("the GPU's memory does not hold it; use fewer trials at once or narrower heads")
        except TrainerError as error:
            return _failure(str(error))
        except Exception as error:  # a bug in one configuration must not cost the night
            logger.exception("trial %s failed by a fault of the program", self.assignment["trial"])
            return _failure(f"{type(error).__name__}: {error}")

    def _epochs(self) -> dict[str, Any]:
        """Train up to a rung or the end, or for a moment: Tune takes longer over a result than a head over an epoch."""
        until = time.monotonic() + TELL_SECONDS
        while True:
            found = self._epoch()
            decides = found["done"] or found["epoch"] in rungs_of(self.task.spec)
            if decides or time.monotonic() >= until:
                return found
            self.before.append(found)

    def _epoch(self) -> dict[str, Any]:
        if not self.heads:
            self.heads = self._begun()
        lines = [head.epoch() for head in self._behind()]
        values = [head.value for head in self.heads]
        if None in values:
            return _failure(f"{self.task.spec.best_by} is undefined on the valid split; choose another --metric")
        value = statistics.fmean(found for found in values if found is not None)
        return mean_of(lines) | {
            "epoch": max(head.state.epoch for head in self.heads),
            "value": value,
            "spread": statistics.pstdev(found for found in values if found is not None) if len(values) > 1 else None,
            "candidate": self._candidate(value),
            "done": all(head.is_over for head in self.heads),
            "why": "epochs" if self.heads[0].state.epoch >= self.heads[0].spec.epochs else "patience",
        }

    def _begun(self) -> list[HeadTraining]:
        data = _benches.get(str(self.task.attempt.paths.folder)) or self._first_bench()
        spec, number = self.task.spec.trial_spec(self.assignment["config"]), self.assignment["trial"]
        return [
            HeadTraining(
                data,
                spec.model_copy(update={"seed": spec.seed + repeat}),
                trial_folder(self.task.attempt.paths.checkpoints, number) / f"repeat-{repeat}",
                self.pause.reason,
                self.task.attempt.number,
            )
            for repeat in range(self.task.spec.repeats)
        ]

    def _first_bench(self) -> HeadTrainingData:
        """Read the features, and wait until the search's other processes have them too."""
        gpus, actor = ray.get_gpu_ids(), ray.get_runtime_context().get_actor_id()
        data = HeadTrainingData.of(self.task, torch.device("cuda" if gpus else "cpu"))
        _benches[str(self.task.attempt.paths.folder)] = data
        attempt = self.task.attempt
        gather(attempt.paths.scratch / f"slots-{attempt.number}", actor, self.slots, self.pause.reason)
        return data

    def _behind(self) -> list[HeadTraining]:
        """Return the heads that have this epoch before them: after a pause between two repeats, not all."""
        alive = [head for head in self.heads if not head.is_over]
        at = min((head.state.epoch for head in alive), default=0)
        return [head for head in alive if head.state.epoch == at]

    def _candidate(self, value: float) -> str | None:
        """Write the epoch's head when it may be the best of the search; return the name of its folder."""
        value_to_beat, metric = self.assignment.get("value_to_beat"), self.task.spec.best_by
        if value_to_beat is not None and not is_better(value, value_to_beat, metric):
            return None
        self.assignment["value_to_beat"] = value
        best = self.heads[0]
        for head in self.heads[1:]:
            if head.value is not None and best.value is not None and is_better(head.value, best.value, metric):
                best = head
        name = candidate_name(self.assignment["trial"], best.state.epoch)
        folder = self.task.attempt.paths.checkpoints / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        best.write_candidate(folder)
        return name


def candidate_name(trial: int, epoch: int) -> str:
    """Return the name of the folder of a head that may be the best."""
    return f"candidate-{trial:06d}-{epoch:06d}"


def mean_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of the figures of all repeats, which took the sum of their seconds.

    What is undefined in one is undefined.
    """
    found: dict[str, Any] = {}
    for name, first in (lines[0] if lines else {}).items():
        values = [line[name] for line in lines]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        average = sum if name == "seconds" else statistics.fmean
        found[name] = average(values) if numbers and len(values) > 1 else first
    return found


def _failure(why: str) -> dict[str, Any]:
    return {"failed": " ".join(why.split()), "done": True}


GATHER_SECONDS = 30.0  # a slot that a busy cluster holds back for longer joins later


def gather(folder: Path, name: str, slots: int, stops: Callable[[], object]) -> None:
    """Wait in `folder` until processes of so many names are there, or `stops` returns a reason."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    until = time.monotonic() + GATHER_SECONDS
    while sum(1 for _ in folder.iterdir()) < slots and time.monotonic() < until and not stops():
        time.sleep(0.02)
