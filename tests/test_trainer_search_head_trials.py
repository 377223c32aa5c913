"""What the trials of one process report when one of them fails or pauses."""

import errno
import gc
import os
import weakref
from datetime import UTC, datetime

import pytest
import torch

from cluster.lease import Lease
from cluster.settings import Settings
from tests.searched import SimulatedSearch, search_spec
from tests.trained import done, new_run
from trainer.attempt import Attempt
from trainer.distributed.worker import WorkerTask
from trainer.search import head_trials
from trainer.search.frozen_trials import FrozenTrials, read_data
from trainer.search.trial_messages import TrialAssignment
from trainer.training import loop
from trainer.training.head_fit import one_thread

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task(tmp_path_factory, digits_shards):
    """A search of trials with three epochs and two seeds, whose features are in the cache."""
    storage = tmp_path_factory.mktemp("storage")
    spec = search_spec(digits_shards, epochs=9, repeats=2, patience=0)
    done(storage, spec.trial_spec({}), "features")
    paths = new_run(storage, spec, "search-20261123-000000-abcdef")
    SimulatedSearch(paths, spec, lambda: datetime.now(UTC))
    return WorkerTask(attempt=Attempt.of(paths.folder, 1, Settings(storage=storage)), spec=spec, source=None)


@pytest.fixture
def trials(task, monkeypatch):
    monkeypatch.setattr(head_trials, "REPORT_SECONDS", 600.0)  # so that only rungs and ends are reported
    data = read_data(task, CPU)
    with one_thread(True):
        yield FrozenTrials(task, lambda: data)


def assigned(task, *numbers, **options):
    return [
        TrialAssignment(
            trial=number,
            config=task.spec.default_config | {"head_width": 16, "lr": 1e-3 * (number + 1)} | options,
            value_to_beat=0.0,
        )
        for number in numbers
    ]


def test_trials_report_together_at_each_rung_and_at_their_end(task, trials):
    trials.train_only(assigned(task, 0, 1))

    steps = [trials.step(), trials.step()]

    assert [{number: [r.epoch for r in step.reports] for number, step in each.items()} for each in steps] == [
        {0: [1, 2, 3], 1: [1, 2, 3]},
        {0: [4, 5, 6, 7, 8, 9], 1: [4, 5, 6, 7, 8, 9]},
    ]
    assert [step.end for step in steps[0].values()] == [None, None]
    assert [step.end.why for step in steps[1].values()] == ["epochs", "epochs"]
    assert all(report.spread is not None for report in steps[0][0].reports)


def test_a_trial_that_fails_ends_and_the_others_report(task, trials):
    good, bad = assigned(task, 10, 11)
    trials.train_only([good, bad])
    trials.step()
    with torch.no_grad():
        for head in trials.heads[11].heads:
            slot = next(s for stacks in trials.group._stacks.values() for s in stacks if head in s.heads)
            slot.model.model.values[slot.heads.index(head)] = float("nan")

    steps = trials.step()

    assert steps[11].end.outcome == "failed"
    assert "loss is not finite (NaN or inf)" in steps[11].end.error
    assert [report.epoch for report in steps[10].reports] == [4]
    trials.train_only([good])
    assert trials.step()[10].end.why == "epochs"


def test_trials_that_are_asked_to_pause_save_checkpoints_and_go_on_from_them(task, trials):
    assignments = assigned(task, 20, 21)
    trials.train_only(assignments)
    trials.step()
    trials.group.stop_reason = lambda: "window"

    steps = trials.step()

    assert [step.end.outcome for step in steps.values()] == ["paused", "paused"]
    resumed = FrozenTrials(task, trials.data)
    resumed.train_only(assignments)
    assert [report.epoch for report in resumed.step()[20].reports] == [4, 5, 6, 7, 8, 9]


@pytest.fixture
def without_collector():
    """Free only what no reference cycle keeps, as there is no time for the others before a GPU is full."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def spoil(trial):
    for head in trial.heads:
        head.module.get_parameter("1.weight").data.fill_(float("nan"))


ENDS = {
    "at its last epoch": lambda *_: None,
    "by the search": lambda trials, first: trials.train_only([trials.heads[first + 1].assignment]),
    "by an error": lambda trials, first: spoil(trials.heads[first]),
    "by a pause": lambda trials, _: setattr(trials.group, "stop_reason", lambda: "window"),
}


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize(
    ("how", "alone"), [*((how, False) for how in ENDS), *((how, True) for how in ENDS if how != "by the search")]
)
def test_the_tensors_of_a_trial_that_has_ended_are_freed_at_once(task, trials, monkeypatch, how, alone):
    monkeypatch.setattr(loop, "DEVICES", ("cpu",))  # steps read from tables, as those on a GPU
    first = 30 + 10 * list(ENDS).index(how) + 5 * alone  # a trial that no other test has trained

    def reason():
        return trials.group.stop_reason()

    trials.pause.reason = reason
    trials.train_only(assigned(task, *((first,) if alone else (first, first + 1))))
    trials.step()
    found = [
        weakref.ref(kept)
        for head in trials.heads[first].heads
        for kept in (*head.module.parameters(), head.ema.module, head.optimizer)
    ]
    stacks = [weakref.ref(stack.model) for stacks in trials.group._stacks.values() for stack in stacks]

    ENDS[how](trials, first)
    if how != "by the search":
        trials.step()

    assert [one() for one in found if one() is not None] == []
    trials.train_only([])
    assert [stack() for stack in stacks if stack() is not None] == []


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ESTALE, "cannot be written: Stale file handle"), (errno.ENOSPC, "cannot be written: No space left")],
)
def test_a_storage_that_fails_ends_the_attempt_and_no_trial(task, trials, monkeypatch, number, text):
    first, second = assigned(task, *((100, 101) if number == errno.ESTALE else (102, 103)))
    trials.train_only([first, second])

    def refuse(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as failing:
        failing.setattr(Lease, "write_bytes", refuse)
        steps = trials.step()

    assert [(step.end.outcome, text in step.end.error) for step in steps.values()] == [("lost", True)] * 2
    trials.train_only([first])
    assert trials.step()[first.trial].end is None
