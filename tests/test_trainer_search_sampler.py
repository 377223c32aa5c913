import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import SpecError
from trainer.search.sampler import suggest
from trainer.search.trials import TrialTable
from trainer.specs import SearchSpec, TrainSpec, build
from trainer.specs.search_space import Range, Space


def search(**options):
    return build(SearchSpec, shards="shards", **options)


def goodness(config):
    """A synthetic objective, best near lr 1e-3 and dropout 0.2."""
    return abs(config["lr"] - 1e-3) * 100 + abs(config["dropout"] - 0.2) + config["head_width"] / 1e5


def run_sequentially(spec, table, until):
    """Run a sequential search on the table; return the events it wrote."""
    events = []
    while len(table.trials) < until:
        number = len(table.trials)
        config = suggest(spec, number, table)
        new = [
            {"event": "started", "trial": number, "config": config},
            {"event": "epoch", "trial": number, "epoch": 1, "value": goodness(config), "seconds": 1.0},
            {"event": "failed", "trial": number, "error": "x"}
            if number % 7 == 3
            else {"event": "finished", "trial": number, "why": "rung" if number % 3 == 1 else "epochs"},
        ]
        for event in new:
            table.add(event)
        events += new
    return events


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
@settings(max_examples=8, deadline=None)
@given(cut=st.integers(0, 23), seed=st.integers(0, 2**32 - 1))
def test_a_killed_search_suggests_what_it_would_have_suggested(algorithm, cut, seed):
    spec = search(algorithm=algorithm, trials=24, seed=seed)
    uninterrupted = run_sequentially(spec, TrialTable("loss"), 24)
    before = run_sequentially(spec, TrialTable("loss"), cut)

    after = run_sequentially(spec, TrialTable.fold(before, "loss"), 24)

    assert before + after == uninterrupted


def test_a_trial_that_was_cut_short_does_not_change_what_comes_after_it():
    spec = search(trials=24)
    table = TrialTable("loss")
    run_sequentially(spec, table, 12)
    config = suggest(spec, 12, table)
    table.add({"event": "started", "trial": 12, "config": config})

    again = suggest(spec, 13, TrialTable.fold([], "loss")), suggest(spec, 13, table)

    assert again[1] == suggest(spec, 13, table)
    assert config == table.trials[12].config


def test_seeds_draw_different_searches_and_numbers_different_trials():
    first = [tuple(suggest(search(seed=0), n, TrialTable("loss")).values()) for n in range(1, 7)]
    second = [tuple(suggest(search(seed=1), n, TrialTable("loss")).values()) for n in range(1, 7)]

    assert len(set(first + second)) == 12


def test_the_first_trial_has_the_defaults_of_train_if_they_lie_in_the_space():
    inside, outside = search(dropout=0.25), search(space=Space(lr=Range(low=1e-2, high=1e-1, log=True)))

    first = suggest(inside, 0, TrialTable("loss"))

    assert inside.trial_spec(first).model_dump() == build(TrainSpec, shards="shards", dropout=0.25).model_dump()
    assert suggest(outside, 0, TrialTable("loss")) in outside.space


def test_the_first_trial_of_a_grid_has_the_defaults_if_they_are_a_point_and_each_point_is_tried_once():
    space = Space(dropout=(0.2, 0.4), lr=(5e-3, 5e-4), head_width=None)
    spec, table = search(algorithm="grid", trials=4, space=space), TrialTable("loss")

    for number in range(4):
        table.add({"event": "started", "trial": number, "config": suggest(spec, number, table)})

    configs = [tuple(trial.config.values()) for trial in table.trials.values()]
    assert configs[0] == (5e-4, 0.4)
    assert sorted(configs) == [(5e-4, 0.2), (5e-4, 0.4), (5e-3, 0.2), (5e-3, 0.4)]
    assert (spec.excluded_defaults, search(algorithm="grid").excluded_defaults) == ({}, {"lr": 5e-4, "dropout": 0.4})


def test_a_search_that_extends_one_without_the_defaults_tries_them_first():
    spec, table = search(extend="search-20261123-000000-abcdef"), TrialTable("loss")
    table.add({"event": "started", "trial": 0, "config": {"lr": 1e-3, "dropout": 0.1, "head_width": 128}})

    config = suggest(spec, 1, table)
    table.add({"event": "started", "trial": 1, "config": config})

    assert config == {name: spec.default_config[name] for name in spec.space.dimensions}
    assert not spec.is_default(suggest(spec, 2, table))


def test_every_suggestion_lies_in_the_space():
    spec = search(space=Space(weight_decay=Range(low=1e-6, high=1e-2, log=True), batch_size=(16, 32)), trials=40)
    table = TrialTable("loss")

    run_sequentially(spec, table, 40)

    assert all(trial.config in spec.space for trial in table.trials.values())
    assert all(spec.trial_spec(trial.config) for trial in table.trials.values())


def test_tpe_learns_and_random_does_not():
    def mean_of_last_half(algorithm):
        total = 0.0
        for seed in range(3):
            table = TrialTable("loss")
            run_sequentially(search(algorithm=algorithm, seed=seed, trials=60), table, 60)
            total += sum(goodness(table.trials[number].config) for number in range(30, 60))
        return total / 90

    assert mean_of_last_half("tpe") < 0.7 * mean_of_last_half("random")


def test_a_grid_search_tries_every_point_once_in_shuffled_order():
    space = Space(dropout=None, lr=Range(low=1e-4, high=1e-2, log=True, points=3))
    spec = search(algorithm="grid", trials=12, space=space)
    table = TrialTable("loss")

    for number in range(12):
        table.add({"event": "started", "trial": number, "config": suggest(spec, number, table)})

    points = [tuple(trial.config.values()) for trial in table.trials.values()]
    assert sorted(points) == sorted(tuple(point.values()) for point in spec.space.grid())
    assert points != sorted(points)
    with pytest.raises(SpecError, match="all 12 points of the grid have been tried"):
        suggest(spec, 12, table)


def test_a_narrower_space_keeps_the_trials_inside_it():
    wide, narrow = search(trials=60), search(trials=60, space=Space(lr=Range(low=1e-4, high=5e-3, log=True)))
    table = TrialTable("loss")
    run_sequentially(wide, table, 40)

    config = suggest(narrow, 40, table)

    assert not all(trial.config in narrow.space for trial in table.trials.values())
    assert config in narrow.space
    assert config != suggest(narrow, 40, TrialTable("loss"))
