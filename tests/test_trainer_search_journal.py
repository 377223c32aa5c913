import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.files import append_line, read_lines
from tests.searched import NOON, SimulatedSearch, search_spec
from tests.trained import new_run
from trainer.search.asha import rungs, survives
from trainer.search.leaderboard import leaderboard
from trainer.search.trial_messages import TrialEnd, TrialReport, TrialStep
from trainer.search.trials import TrialTable

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


def test_events_after_the_end_of_a_trial_are_ignored():
    events = [started(0), epoch(0, 1, 0.5), finished(0), started(0), epoch(0, 2, 0.1), {"event": "failed", "trial": 0}]

    table = TrialTable.fold(events, "loss")

    assert (table.finished, table.failed, table.best().value) == (1, 0, 0.5)


def test_the_lines_of_the_journal_have_the_documented_keys(tmp_path):
    spec = search_spec("shards", trials=2)
    paths = new_run(tmp_path, spec, "search")
    search = SimulatedSearch(paths, spec)
    report = TrialReport(epoch=1, value=0.5, candidate="candidate-000000-000001", valid_loss=0.5, seconds=2.0)

    search.controller.record(search.start(), TrialStep(reports=(report,), end=TrialEnd.finished("patience")))
    search.fail(search.start(), "out of\nGPU memory")

    stamp = {"attempt": 1, "time": NOON.isoformat()}
    figures = {"spread": None, "train_loss": None, "valid_loss": 0.5, "valid_accuracy": None, "valid_auroc": None}
    trials = search.controller.journal.table.trials
    assert list(read_lines(paths.trials)) == [
        {"event": "opened", **stamp},
        {"event": "started", "trial": 0, "config": trials[0].config, **stamp},
        {"event": "epoch", "trial": 0, "epoch": 1, "value": 0.5, "candidate": "candidate-000000-000001",
         "seconds": 2.0, **figures, **stamp},
        {"event": "finished", "trial": 0, "why": "patience", **stamp},
        {"event": "started", "trial": 1, "config": trials[1].config, **stamp},
        {"event": "failed", "trial": 1, "error": "out of GPU memory", **stamp},
    ]  # fmt: skip


@pytest.mark.parametrize("end", [None, TrialEnd.finished("epochs"), TrialEnd.failed("x"), TrialEnd.paused()])
def test_a_message_of_a_trial_is_the_same_after_its_way_through_ray_tune(end):
    reports = (TrialReport(epoch=1, value=0.5), TrialReport(epoch=2, value=0.25, spread=0.1, seconds=3.0))

    result = TrialStep(reports=reports, end=end).to_tune()

    assert TrialStep.from_tune(json.loads(json.dumps(result))) == TrialStep(reports=reports, end=end)
    assert result["done"] == (end is not None)


def test_a_report_has_the_means_of_the_repeats_and_the_sum_of_their_seconds():
    lines = [
        {"valid_loss": 0.5, "valid_auroc": 0.75, "seconds": 2.0},
        {"valid_loss": 1.0, "valid_auroc": None, "seconds": 3.0},
    ]

    report = TrialReport.of_repeats(lines, epoch=4, values=[0.5, 1.0], candidate=None)

    assert report == TrialReport(epoch=4, value=0.75, spread=0.25, valid_loss=0.75, valid_auroc=None, seconds=5.0)


def test_a_failed_trial_keeps_its_error_and_its_row_in_the_leaderboard():
    error = "the loss is not finite (NaN or inf)"
    events = [started(0), {"event": "failed", "trial": 0, "error": error}, started(1), epoch(1, 1, 1)]

    rows = leaderboard(TrialTable.fold(events, "loss"))

    assert [(row["trial"], row["state"], row["error"]) for row in rows] == [
        (1, "running", None),
        (0, "failed", error),
    ]


def test_a_row_of_the_leaderboard_has_the_documented_columns():
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
def test_a_journal_read_after_a_crash_gives_the_table_that_was_in_memory(events, cut, metric):
    in_memory = TrialTable.fold(events[:cut], metric)
    for event in events[cut:]:
        in_memory.add(event)

    read = TrialTable.fold(json.loads(json.dumps(events)), metric)

    assert read == in_memory


@given(events=st.lists(EVENT, max_size=40))
def test_every_trial_that_began_is_in_exactly_one_state_and_no_report_is_better_than_the_best(events):
    table = TrialTable.fold(events, "auroc")

    assert len(table.ended) + len(table.unfinished) == len(table.trials)
    values = [report.value for report in table.reports()]
    assert (table.best() is None) == (not values)
    assert not values or table.best().value == max(values)


@settings(max_examples=25)
@given(events=st.lists(EVENT, min_size=1, max_size=6), keep=st.integers(1, 200))
def test_a_line_cut_short_by_a_crash_loses_only_that_line(tmp_path_factory, events, keep):
    path = tmp_path_factory.mktemp("journal") / "trials.jsonl"
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


def test_the_best_third_at_a_rung_continues():
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
