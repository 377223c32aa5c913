import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import SpecError
from trainer.specs import SearchSpec, TrainSpec, build, read_spec
from trainer.specs.search_space import Range, Space, parse_dimension


def test_the_grid_of_a_learning_rate_is_even_over_orders_of_magnitude():
    axis = Range(low=1e-5, high=1e-1, log=True, points=5)

    grid = axis.grid()

    assert grid == pytest.approx((1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
    assert (grid[0], grid[-1]) == (1e-5, 1e-1)


def test_a_grid_visits_every_combination_once():
    space = Space(lr=None, dropout=Range(low=0, high=0.5, points=3), head_width=(4, 8))

    points = [tuple(point.values()) for point in space.grid()]

    assert points == [(0.0, 4), (0.0, 8), (0.25, 4), (0.25, 8), (0.5, 4), (0.5, 8)]
    assert space.grid_size == len(points)


@given(low=st.floats(1e-6, 1.0), factor=st.floats(1.01, 1e4), points=st.integers(2, 30), log=st.booleans())
def test_every_point_of_a_grid_lies_within_its_range(low, factor, points, log):
    axis = Range(low=low, high=low * factor, log=log, points=points)

    grid = axis.grid()

    assert len(grid) == points
    assert all(value in axis for value in grid)
    assert list(grid) == sorted(grid)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {"lr": {"low": 1, "high": 0.1}}}, "range 1:0.1 is empty or reversed; write the lower bound first"),
        (
            {"space": {"lr": {"low": 0, "high": 0.1, "log": True}}},
            "range 0:0.1 is sampled log-uniformly; its lower bound must be above 0",
        ),
        ({"space": {"head_width": (10, 128)}}, "head_width 10 is not a multiple of 4"),
        ({"space": {"head_width": (8, 8)}}, "head_width names one choice twice: 8, 8"),
        (
            {"trials": 101, "algorithm": "grid"},
            "101 trials are more than the 100 points of the grid; "
            "use --trials 100, or more points as in --lr 1e-5:1e-2:9",
        ),
        ({"window": "20:00-20:00"}, "window 20:00-20:00 never opens; its start and end must differ"),
        (
            {"space": {"batch_size": (8, 9)}, "workers": 2},
            "batch_size 9 does not split evenly over 2 workers; use a multiple of 2",
        ),
        (
            {"space": {"lr": None, "dropout": None, "head_width": None}},
            "the space is a single point; give a range such as --lr 1e-5:1e-2",
        ),
        (
            {"space": {"augment_strength": {"low": 0, "high": 2}}},
            "augment_strength varies where nothing is augmented; add --augment",
        ),
        (
            {"augment": True, "space": {"augment_strength": (1, 5)}},
            "augment_strength 5.0 is above 4; use 4 or less",
        ),
        ({"timezone": "Mars"}, "timezone 'Mars' is unknown; write an IANA name such as Europe/Berlin"),
    ],
)
def test_a_search_that_can_never_work_is_refused_in_one_line(options, message):
    with pytest.raises(SpecError) as caught:
        build(SearchSpec, shards="shards", **options)

    assert str(caught.value) == message


def test_a_search_reads_back_as_it_was_written(tmp_path):
    spec = build(SearchSpec, shards="shards", trials=8, until="2026-11-24T07:00:00+01:00", window="20:00-07:00")

    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))

    assert read_spec(tmp_path / "spec.json") == spec


def test_a_trial_is_a_training_with_the_options_of_its_search():
    spec = build(SearchSpec, shards="shards", epochs=7, seed=3, best_by="auroc")

    trial = spec.trial_spec({"lr": 0.01, "dropout": 0.1, "head_width": 8})

    assert trial == build(
        TrainSpec, shards="shards", epochs=7, seed=3, best_by="auroc", lr=0.01, dropout=0.1, head_width=8
    )


def test_only_searches_over_one_frozen_backbone_read_features():
    def reads(**options):
        return build(SearchSpec, shards="shards", **options).reads_features

    assert reads()
    assert not reads(freeze="3")
    assert not reads(augment=True)
    assert not reads(cache=False)
    assert not reads(space={"freeze": ("all", "none")})


def test_a_dimension_is_read_as_people_write_it():
    assert parse_dimension("lr", "1e-5:1e-2") == Range(low=1e-5, high=1e-2, log=True)
    assert parse_dimension("dropout", "0:0.6:7") == Range(low=0, high=0.6, points=7)
    assert parse_dimension("head_width", "128, 256") == ("128", "256")
    assert parse_dimension("lr", "5e-4") == "5e-4"
    assert math.isclose(Range(low=1e-4, high=1e-2, log=True, points=3).grid()[1], 1e-3)


@pytest.mark.parametrize("text", ["a:b", "1:2:3:4", "1:2:x"])
def test_what_is_no_range_is_refused_with_the_way_to_write_it(text):
    with pytest.raises(ValueError, match="write it as low:high"):
        parse_dimension("lr", text)
