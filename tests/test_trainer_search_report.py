import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.searched import search_spec
from trainer.search.importance import importance
from trainer.search.report import cost, search_charts, search_section
from trainer.search.trial_charts import parallel_coordinates
from trainer.search.trials import TrialTable

EVENING = datetime(2026, 11, 23, 20, tzinfo=UTC)


def table_of(spec, trials=12):
    """A synthetic search in which only the learning rate matters; ASHA stops every third trial."""
    table = TrialTable(spec.best_by)
    for number in range(trials):
        config = {"lr": 10.0 ** -(2 + number % 4), "dropout": 0.05 * number, "head_width": (8, 16, 32)[number % 3]}
        table.add({"event": "started", "trial": number, "config": config})
        for epoch in range(1, 4 if number % 3 == 2 else 10):
            time = (EVENING + timedelta(minutes=10 * number + epoch)).isoformat()
            value = 1.0 + number % 4 - epoch / 100
            table.add({"event": "epoch", "trial": number, "epoch": epoch, "value": value, "seconds": 2.0, "time": time})
        table.add({"event": "finished", "trial": number, "why": "rung" if number % 3 == 2 else "epochs"})
    return table


def test_the_report_has_the_optimization_history_importances_and_a_slice_plot_per_varied_option():
    spec = search_spec("shards", epochs=9)

    found = search_charts(table_of(spec), spec, {"lr": 0.9, "dropout": 0.1})

    assert [one.title for one in found] == [
        "Optimization history", "Hyperparameter importance (fANOVA)", "Parallel coordinates",
        "Slice plot: lr", "Slice plot: dropout", "Slice plot: head width",
    ]  # fmt: skip
    assert "final value 0.91" in found[0].chart.svg
    assert "lr 90 percent, dropout 10 percent" in found[1].chart.svg
    assert len(re.findall("<title>trial ", found[2].chart.svg)) == 12
    assert all(len(re.findall("<circle class=.dot", one.chart.svg)) == 12 for one in found[3:])
    assert "nan" not in "".join(one.chart.svg for one in found)


def test_a_search_without_an_epoch_has_no_charts():
    spec = search_spec("shards")

    assert search_charts(TrialTable("loss"), spec, {}) == ()
    assert importance(TrialTable("loss"), spec) == {}


@pytest.mark.parametrize("metric", ["loss", "auroc"])
def test_in_parallel_coordinates_the_best_trial_ends_at_the_top_and_is_drawn_last(metric):
    spec = search_spec("shards", epochs=9, best_by=metric, space={"head_width": (8, 16), "freeze": ("all", "none")})
    table = TrialTable(metric)
    for number, (lr, freeze) in enumerate([(1e-3, "all"), (1e-1, "none"), (1e-4, "all")]):  # one lr out of the space
        config = {"lr": lr, "dropout": 0.1, "head_width": 64, "freeze": freeze}
        table.add({"event": "started", "trial": number, "config": config})
        table.add({"event": "epoch", "trial": number, "epoch": 1, "value": 0.1 + 0.2 * number})

    svg = parallel_coordinates(table, spec).svg

    drawn = re.findall(r'd="M([^"]*)"><title>trial (\d)', svg)
    heights = {int(number): float(path.split()[-1]) for path, number in drawn}
    best = table.best().trial
    assert [int(number) for _, number in drawn][-1] == best
    assert min(heights, key=heights.get) == best
    assert all(0 <= height <= 320 for height in heights.values())


def test_importance_finds_the_only_option_that_matters():
    spec = search_spec("shards", epochs=9)

    shares = importance(table_of(spec), spec)

    assert max(shares, key=shares.get) == "lr"
    assert shares["lr"] > 0.5


def test_what_two_options_explain_together_is_the_importance_of_neither():
    spec = search_spec("shards", space={"dropout": {"low": 0.0, "high": 0.5}, "lr": {"low": 0.1, "high": 0.6}})
    table = TrialTable("loss")
    for number in range(36):
        high, wide = number % 6, number // 6
        config = {"dropout": 0.1 * high, "lr": 0.1 * (1 + wide)}
        table.add({"event": "started", "trial": number, "config": config})
        value = float((high > 2) == (wide > 2))  # each option alone says nothing
        table.add({"event": "epoch", "trial": number, "epoch": 1, "value": value})
        table.add({"event": "finished", "trial": number, "why": "epochs"})

    shares = importance(table, spec)

    assert sum(shares.values()) < 0.5


@pytest.mark.parametrize("changes", [{"value": 0.0}, {"config": {"lr": 9.0, "dropout": 0.1, "head_width": 8}}])
def test_trials_that_do_not_differ_or_lie_outside_of_the_space_give_no_importance(changes):
    spec, table = search_spec("shards"), TrialTable("loss")

    for number in range(6):
        config = {"lr": 10.0 ** -(2 + number % 3), "dropout": 0.1 * number, "head_width": 8}
        table.add({"event": "started", "trial": number, "config": changes.get("config", config)})
        table.add({"event": "epoch", "trial": number, "epoch": 1, "value": changes.get("value", float(number))})
        table.add({"event": "finished", "trial": number, "why": "epochs"})

    assert importance(table, spec) == {}


def test_the_cost_counts_epochs_backbone_passes_and_savings():
    spec = search_spec("shards", epochs=9)

    found = cost(table_of(spec), spec, images=300)

    epochs = 8 * 9 + 4 * 3
    assert found["epochs"] == epochs
    assert found["training_hours"] == round(2 * epochs / 3600, 4)
    assert (found["backbone_passes"], found["images_spared_by_cache"]) == (1, 300 * (epochs - 1))
    assert (found["epochs_spared_by_early_stopping"], found["hours_spared_by_early_stopping"]) == (24, 0.0133)
    assert cost(table_of(spec), search_spec("shards", epochs=9, freeze="none"), images=300)["backbone_passes"] == epochs


def test_trials_copied_from_an_extended_search_cost_nothing():
    spec = search_spec("shards", epochs=9)
    table = table_of(spec)
    whole = cost(table, spec, images=300)
    for number in range(12, 15):
        table.add({"event": "started", "trial": number, "config": {}})
        table.add({"event": "epoch", "trial": number, "epoch": 1, "value": 1.0, "seconds": 50.0, "from": "search-x"})
        table.add({"event": "finished", "trial": number, "why": "rung", "from": "search-x"})

    assert cost(table, spec, images=300) == whole


def test_the_leaderboard_of_a_report_names_its_figures_and_says_how_many_trials_it_leaves_out():
    spec = search_spec("shards", epochs=9)
    table = table_of(spec, 17)

    found = search_section(table, spec, {}, {"sentence": "trial 0 is published"})

    assert [*found.leaderboard[0]][:2] == ["trial", "valid loss"]
    assert found.notes == ["Trial 0 is published.", "Shown are the best 15 of 17 trials."]
    assert len(found.leaderboard) == 15
