"""Heads of a search, without Ray."""

import json
import time

import pytest

from cluster.files import read_lines
from tests import searched_heads
from tests.searched_heads import data_of_search, head
from tests.stack import eventually
from tests.trained import attempted, new_run, train_spec
from trainer.errors import Stopped
from trainer.search.trial_files import PauseSignal
from trainer.specs import SearchSpec, build

folder = searched_heads.folder
one_thread_like_a_trial_process = searched_heads.one_thread_like_a_trial_process


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_shards):
    """A run of `train`, which also fills the feature cache of its storage."""
    spec = train_spec(digits_shards, epochs=3, seed=5)
    paths = new_run(tmp_path_factory.mktemp("storage"), spec)
    attempted(paths, spec)
    return paths


@pytest.fixture(scope="module")
def data(trained, digits_shards):
    return data_of_search(trained.storage, digits_shards, epochs=3)


def epochs_of(training):
    lines = []
    while not training.is_over:
        lines.append(training.epoch())
    return lines


def test_a_trial_trains_as_train_does_with_the_same_options(trained, data, folder):
    lines = list(read_lines(trained.metrics))

    found = epochs_of(head(data, folder))

    assert [line["train_loss"] for line in found] == [line["train_loss"] for line in lines]
    assert [line["valid_loss"] for line in found] == pytest.approx([line["valid_loss"] for line in lines], rel=1e-12)
    assert [line["valid_auroc"] for line in found] == pytest.approx([line["valid_auroc"] for line in lines], rel=1e-12)


def test_trials_in_one_process_do_not_depend_on_each_other(data, folder):
    first = epochs_of(head(data, folder / "a", lr=1e-2))
    epochs_of(head(data, folder / "b", head_width=8))

    again = epochs_of(head(data, folder / "c", lr=1e-2))

    assert [line["valid_loss"] for line in again] == [line["valid_loss"] for line in first]


@pytest.mark.parametrize("steps", [1, 9, 13])
def test_a_trial_that_paused_trains_on_as_if_it_had_not(data, folder, steps):
    uninterrupted = epochs_of(head(data, folder / "a"))
    asked = iter([None] * (steps - 1) + ["window"])
    paused = head(data, folder / "b", lambda: next(asked))
    with pytest.raises(Stopped):
        epochs_of(paused)

    rest = epochs_of(head(data, folder / "b"))

    assert rest[-1]["valid_loss"] == uninterrupted[-1]["valid_loss"]
    assert len(rest) < 3 or steps < 9


def test_a_trial_longer_than_a_minute_saves_checkpoints_between_epochs(data, folder):
    training = head(data, folder)
    training.epoch()
    assert not list(folder.iterdir())
    training.saved_at = time.monotonic() - 61

    training.epoch()

    assert head(data, folder).state.epoch == 2


def test_a_trial_pauses_at_the_pause_signal_and_at_the_runs_own_stop_request(folder):
    paths = new_run(folder, build(SearchSpec, shards="shards"))
    trial, search = PauseSignal(paths, 2), PauseSignal(paths, 2)
    assert trial.reason() is None

    search.send()

    assert eventually(lambda: trial.reason() == "window")
    assert search.run_stop_reason() is None
    paths.stop.write_text(json.dumps({"reason": "drain", "attempt": 2}))
    assert PauseSignal(paths, 2).run_stop_reason() == "drain"
    assert PauseSignal(paths, 3).reason() is None
