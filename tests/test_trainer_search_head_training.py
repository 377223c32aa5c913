"""Heads of a search, without Ray."""

import json
import time

import pytest
import torch

from cluster.files import read_lines
from cluster.settings import Settings
from tests.trained import QUICK, attempted, new_run, train_spec
from trainer.attempt import Attempt
from trainer.distributed.worker import WorkerTask
from trainer.errors import Stopped
from trainer.search.head_training import HeadTraining, HeadTrainingData
from trainer.search.trial_files import PauseSignal
from trainer.specs import SearchSpec, build
from trainer.training.head_fit import one_thread


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_shards):
    """A run of `train`, which also fills the feature cache of its storage."""
    spec = train_spec(digits_shards, epochs=3, seed=5)
    paths = new_run(tmp_path_factory.mktemp("storage"), spec)
    attempted(paths, spec)
    return paths


@pytest.fixture(scope="module")
def data(trained, digits_shards):
    spec = build(SearchSpec, shards=str(digits_shards), seed=5, **(QUICK | {"epochs": 3}))
    settings = Settings(storage=trained.storage)
    attempt = Attempt.of(new_run(settings.storage, spec, "search").folder, None, settings)
    return HeadTrainingData.of(WorkerTask(attempt=attempt, spec=spec, source=None), torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread_like_a_trial_process():
    """The order of a sum, and so its last bit, depends on the number of threads."""
    with one_thread(True):
        yield


@pytest.fixture
def run_folder(data, tmp_path):
    """A folder in the run: only there may its attempt write."""
    folder = data.context.task.attempt.paths.checkpoints / tmp_path.name
    folder.mkdir(parents=True)
    return folder


def never() -> None:
    return None


def head(data, folder, stop=never, **options):
    return HeadTraining(
        data, data.context.task.spec.model_copy(update=options), folder, stop, data.context.task.attempt.lease
    )


def epochs_of(training):
    lines = []
    while not training.is_over:
        lines.append(training.epoch())
    return lines


def test_a_trial_trains_as_train_does_with_the_same_options(trained, data, run_folder):
    lines = list(read_lines(trained.metrics))

    found = epochs_of(head(data, run_folder))

    assert [line["train_loss"] for line in found] == [line["train_loss"] for line in lines]
    assert [line["valid_loss"] for line in found] == pytest.approx([line["valid_loss"] for line in lines], rel=1e-12)
    assert [line["valid_auroc"] for line in found] == pytest.approx([line["valid_auroc"] for line in lines], rel=1e-12)


def test_trials_in_one_process_do_not_depend_on_each_other(data, run_folder):
    first = epochs_of(head(data, run_folder / "a", lr=1e-2))
    epochs_of(head(data, run_folder / "b", head_width=8))

    again = epochs_of(head(data, run_folder / "c", lr=1e-2))

    assert [line["valid_loss"] for line in again] == [line["valid_loss"] for line in first]


@pytest.mark.parametrize("steps", [1, 9, 13])
def test_a_trial_that_paused_trains_on_as_if_it_had_not(data, run_folder, steps):
    uninterrupted = epochs_of(head(data, run_folder / "a"))
    asked = iter([None] * (steps - 1) + ["window"])
    paused = head(data, run_folder / "b", lambda: next(asked))
    with pytest.raises(Stopped):
        epochs_of(paused)

    rest = epochs_of(head(data, run_folder / "b"))

    assert rest[-1]["valid_loss"] == uninterrupted[-1]["valid_loss"]
    assert len(rest) < 3 or steps < 9


def test_a_trial_longer_than_a_minute_saves_checkpoints_between_epochs(data, run_folder):
    training = head(data, run_folder)
    training.epoch()
    assert not list(run_folder.iterdir())
    training.saved_at = time.monotonic() - 61

    training.epoch()

    assert head(data, run_folder).state.epoch == 2


def test_a_trial_pauses_at_the_pause_signal_and_at_the_runs_own_stop_request(run_folder):
    paths = new_run(run_folder, build(SearchSpec, shards="shards"))
    trial, search = PauseSignal(paths, 2), PauseSignal(paths, 2)
    assert trial.reason() is None

    search.send()
    time.sleep(0.3)  # a trial reads it five times a second

    assert trial.reason() == "window"
    assert search.run_stop_reason() is None
    paths.stop.write_text(json.dumps({"reason": "drain", "attempt": 2}))
    assert PauseSignal(paths, 2).run_stop_reason() == "drain"
    assert PauseSignal(paths, 3).reason() is None
