"""The trials of one process on the features of a frozen backbone: heads on the valid split, or cross-validations."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cluster.stop_request import GPU_SECONDS
from trainer.distributed.worker import WorkerTask
from trainer.search.fold_trial import FoldData, FoldTrial
from trainer.search.head_group import HeadGroup
from trainer.search.head_training import HeadTrainingData
from trainer.search.head_trial import HeadTrial
from trainer.search.head_trials import step_together
from trainer.search.trial_files import PauseSignal
from trainer.search.trial_messages import TrialAssignment, TrialStep
from trainer.specs import SearchSpec

FrozenData = HeadTrainingData | FoldData


def read_data(task: WorkerTask[SearchSpec], device: torch.device) -> FrozenData:
    """Read what all trials of a search share.

    Raises:
        ShardError, CheckpointError: Shards or stored features are damaged.
        SpecError: The data set cannot be divided into the folds.
    """
    return HeadTrainingData.of(task, device) if task.spec.folds is None else FoldData.of(task, device)


def widest_head(spec: SearchSpec) -> int:
    """Return the largest width of a head in the search."""
    return max(spec.space.head_width or (spec.head_width,))


class FrozenTrials:
    """The trials that a process trains at the moment.

    Args:
        task: Of the search.
        data: Returns what `read_data` returned; called in the first step of a trial.
        on_gpu: Whether they train on a GPU.
    """

    def __init__(self, task: WorkerTask[SearchSpec], data: Callable[[], Any], *, on_gpu: bool = False) -> None:
        self.task, self.data = task, data
        self.pause = PauseSignal(task.attempt.paths, task.attempt.number, GPU_SECONDS if on_gpu else 0.0)
        self.heads, self.folds = dict[int, HeadTrial](), dict[int, FoldTrial]()
        self.group = HeadGroup(widest_head(task.spec), self.pause.reason)

    def train_only(self, assignments: Sequence[TrialAssignment]) -> None:
        """Start or resume these trials unless they run, with the next step, and train no others."""
        numbers = {assignment.trial for assignment in assignments}
        self._end([number for number in (*self.heads, *self.folds) if number not in numbers])
        for assignment in assignments:
            number = assignment.trial
            if self.task.spec.folds is not None:
                if number not in self.folds:
                    self.folds[number] = FoldTrial(self.task, assignment, self.data, self.pause)
            elif number not in self.heads:
                self.heads[number] = HeadTrial(self.task, assignment, self.data, self.pause)

    def step(self) -> dict[int, TrialStep]:
        """Train all of them until one has something to report; return the step of each by its number."""
        if self.heads:
            steps = step_together(self.group, list(self.heads.values()))
        else:
            steps = {number: trial.step() for number, trial in self.folds.items()}
        self._end([number for number, step in steps.items() if step.end is not None])
        return steps

    def _end(self, numbers: Sequence[int]) -> None:
        """Forget trials, and free the memory of their heads."""
        for number in numbers:
            self.folds.pop(number, None)
            if trial := self.heads.pop(number, None):
                self.group.forget(trial.heads)
                trial.end()
