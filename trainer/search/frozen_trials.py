"""Which trial runs on the features of a frozen backbone: heads on the valid split, or a cross-validation."""

from collections.abc import Callable
from typing import Any

import torch

from trainer.distributed.worker import WorkerTask
from trainer.search.fold_trial import FoldData, FoldTrial
from trainer.search.head_training import HeadTrainingData
from trainer.search.head_trial import HeadTrial
from trainer.search.trial_files import PauseSignal
from trainer.search.trial_messages import TrialAssignment
from trainer.specs import SearchSpec

FrozenData = HeadTrainingData | FoldData


def read_data(task: WorkerTask[SearchSpec], device: torch.device) -> FrozenData:
    """Read what all trials of a search share.

    Raises:
        ShardError, CheckpointError: Shards or stored features are damaged.
        SpecError: The data set cannot be divided into the folds.
    """
    return HeadTrainingData.of(task, device) if task.spec.folds is None else FoldData.of(task, device)


def new_trial(
    task: WorkerTask[SearchSpec], assignment: TrialAssignment, data: Callable[[], Any], pause: PauseSignal
) -> HeadTrial | FoldTrial:
    """Return a trial; `data` returns what `read_data` returned, and is called in its first step."""
    kind = HeadTrial if task.spec.folds is None else FoldTrial
    return kind(task, assignment, data, pause)
