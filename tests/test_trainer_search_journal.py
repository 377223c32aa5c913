import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.files import append_line, read_lines
from trainer.search.asha import rungs, survives
from trainer.search.trials import TrialTable, leaderboard

CONFIG = {"lr": 1e-3, "dropout": 0.1, "head_width": 8}


def started(trial):
    return {"event": "started", "trial": trial, "config": CONFIG}


def epoch(trial, number, value, seconds=1.0):
    return {"event": "epoch", "trial": trial, "epoch": number, "value": value, "seconds": seconds}


def finished(trial, why="epochs"):
    return {"event": "finished", "trial": trial, "why": why}


def test_the_best_is_taken_over_all_epochs_of_all_trials():
    events = [started(0), epoch(0, 1, 0.3), epoch(0, 2, 0.5), finished(0), started(1), epoch(1, 1, 0.4), finished(1)]

    best = TrialTable.fold(events, "loss").best()

    assert (best.trial, best.epoch, best.value) == (0, 1, 0.3)


@pytest.mark.parametrize("metric", ["loss", "auroc"])
def test_of_equal_values_the_earlier_report_is_the_best(metric):
    events = [started(0), started(1), epoch(1, 1, 0.5), epoch(0, 1, 0.5), epoch(0, 2, 0.5)]

    best = TrialTable.fold(events, metric).best()

    assert (best.trial, best.epoch) == (1, 1)


def test_an_epoch_that_is_reported_again_after_a_crash_counts_once():
    events = [started(0), epoch(0, 1, 0.5), epoch(0, 2, 0.4), started(0), epoch(0, 2, 0.4), epoch(0, 3, 0.3)]

    trial = TrialTable.fold(events, "loss").trials[0]

    assert (trial.epochs, trial.seconds, len(trial.reports)) == (3, 3.0, 3)


def test_what_comes_after_the_end_of_a_trial_changes_nothing():
    events = [started(0), epoch(0, 1, 0.5), finished(0), started(0), epoch(0, 2, 0.1), {"event": "failed", "trial": 0}]

    table = TrialTable.fold(events, "loss")

    assert (table.finished, table.failed, table.best().value) == (1, 0, 0.5)


def test_a_trial_that_failed_keeps_its_reason_and_its_place_in_the_table():
    events = [started(0), {"event": "failed", "trial": 0, "error": "the loss is no number"}, started(1), epoch(1, 1, 1)]

    rows = leaderboard(TrialTable.fold(events, "loss"))

    assert [(row["trial"], row["state"], row["error"]) for row in rows] == [
        (1, "running", None),
        (0, "failed", "the loss is no number"),
    ]


def test_a_row_of_the_leaderboard_has_what_the_command_promises():
    events = [started(0), epoch(0, 1, 0.5, seconds=1.5), epoch(0, 2, 0.75, seconds=2.0), finished(0)]

    (row,) = leaderboard(TrialTable.fold(events, "auroc"), "runs/x/best")

    promised = {"trial", "lr", "dropout", "head_width", "metric", "epochs", "seconds", "state", "checkpoint"}
    assert promised <= row.keys()
    assert (row["metric"], row["best_epoch"], row["epochs"], row["seconds"]) == (0.75, 2, 2, 3.5)
    assert (row["state"], row["checkpoint"]) == ("finished", "runs/x/best")


EVENT = st.one_of(
    st.builds(started, st.integers(0, 4)),
    st.builds(epoch, st.integers(0, 4), st.integers(1, 6), st.floats(0, 1)),
    st.builds(finished, st.integers(0, 4)),
    st.builds(lambda trial: {"event": "failed", "trial": trial, "error": "x"}, st.integers(0, 4)),
    st.builds(lambda trial: {"event": "paused", "trial": trial}, st.integers(0, 4)),
)


@given(events=st.lists(EVENT, max_size=40), cut=st.integers(0, 40), metric=st.sampled_from(["loss", "auroc"]))
def test_a_ledger_read_after_a_crash_gives_the_table_that_was_held(events, cut, metric):
    held = TrialTable.fold(events[:cut], metric)
    for event in events[cut:]:
        held.add(event)

    read = TrialTable.fold(json.loads(json.dumps(events)), metric)

    assert read == held


@given(events=st.lists(EVENT, max_size=40))
def test_every_trial_that_began_is_in_exactly_one_state_and_the_best_is_the_best(events):
    table = TrialTable.fold(events, "auroc")

    assert len(table.ended) + len(table.unfinished) == len(table.trials)
    values = [report.value for report in table.reports()]
    assert (table.best() is None) == (not values)
    assert not values or table.best().value == max(values)


@settings(max_examples=25)
@given(events=st.lists(EVENT, min_size=1, max_size=6), keep=st.integers(1, 200))
def test_a_line_torn_by_a_crash_loses_that_line_alone(tmp_path_factory, events, keep):
    path = tmp_path_factory.mktemp("ledger") / "trials.jsonl"
    for event in events:
        append_line(path, event)
    whole = path.read_bytes()
    path.write_bytes(whole[:-keep] if keep < len(whole) else b"")
    left = list(read_lines(path))

    append_line(path, finished(9))

    assert list(read_lines(path)) == [*left, finished(9)]
    assert left == events[: len(left)]


def test_short_trials_have_no_rungs_and_long_ones_have_a_third_each():
    assert rungs(5) == ()
    assert rungs(8) == (2,)
    assert rungs(10) == (3,)
    assert rungs(20) == (2, 6)
    assert rungs(30) == (3, 10)
    assert rungs(100) == (3, 11, 33)


def test_the_best_third_at_a_rung_goes_on():
    values = [0.5, 0.6, 0.4, 0.45, 0.3]
    table, decisions = TrialTable("loss"), []

    for trial, value in enumerate(values):
        table.add(started(trial))
        table.add(epoch(trial, 3, value))
        decisions.append(survives(table.trials[trial].reports[3], table))

    assert decisions == [True, False, True, True, True]


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=30), epochs=st.just(3))
def test_a_decision_at_a_rung_depends_on_earlier_reports_alone(values, epochs):
    live, then = TrialTable("auroc"), []
    for trial, value in enumerate(values):
        live.add(started(trial))
        live.add(epoch(trial, epochs, value))
        then.append(survives(live.trials[trial].reports[epochs], live))

    now = [survives(live.trials[trial].reports[epochs], live) for trial in range(len(values))]

    assert now == then
    assert then[0]
