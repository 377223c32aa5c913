"""Heads of a search on stored features, without its trials."""

import pytest
import torch

from cluster.settings import Settings
from tests.trained import QUICK, new_run
from trainer.attempt import Attempt
from trainer.distributed.worker import WorkerTask
from trainer.search.head_training import HeadTraining, HeadTrainingData
from trainer.specs import SearchSpec, build
from trainer.training.head_fit import one_thread


@pytest.fixture(autouse=True)
def one_thread_like_a_trial_process():
    """The order of a sum, and so its last bit, depends on the number of threads."""
    with one_thread(True):
        yield


def data_of_search(storage, shards, *, epochs):
    """What the heads of a search train on, in a storage whose feature cache has the features."""
    spec = build(SearchSpec, shards=str(shards), seed=5, **(QUICK | {"epochs": epochs}))
    attempt = Attempt.of(new_run(storage, spec, "search").folder, None, Settings(storage=storage))
    return HeadTrainingData.of(WorkerTask(attempt=attempt, spec=spec, source=None), torch.device("cpu"))


@pytest.fixture
def folder(data, tmp_path):
    """A folder in the run: only there may its attempt write."""
    found = data.context.task.attempt.paths.checkpoints / tmp_path.name
    found.mkdir(parents=True)
    return found


def never() -> None:
    return None


def head(data, folder, stop=never, **options):
    task = data.context.task
    return HeadTraining(data, task.spec.model_copy(update=options), folder, stop, task.attempt.lease)
