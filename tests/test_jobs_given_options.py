"""The options of a run: which were chosen, and which have their defaults."""

from jobs.runs.given_options import GivenOptions
from jobs.runs.request import JobRequest
from trainer.specs import SearchSpec, Spec, TrainSpec, build
from trainer.specs.option_text import option_text
from trainer.specs.search_space import Range, Space


def given(spec: Spec, **request: object) -> GivenOptions:
    return GivenOptions.of(spec.to_json(), JobRequest(**request).to_json())


def test_a_value_that_differs_from_the_default_was_chosen_also_if_it_turns_something_off() -> None:
    spec = build(TrainSpec, shards="/shards", epochs=7, patience=None, cache=False)

    found = given(spec, retries=0, name="night", tags=("chest",), note="text", owner="mira")

    assert found.chosen == {"shards": "/shards", "epochs": 7, "patience": None, "cache": False, "retries": 0}
    assert found.defaults["lr"] == 0.0005
    assert found.defaults["priority"] == "normal"


def test_what_is_off_by_default_is_left_out() -> None:
    found = given(build(TrainSpec, shards="/shards"))

    assert {"folds", "after", "at", "positive"}.isdisjoint({**found.chosen, **found.defaults})


def test_a_dimension_of_a_search_space_stands_in_place_of_the_fixed_value() -> None:
    space = Space(dropout=Range(low=0.1, high=0.2), head_width=None)
    spec = build(SearchSpec, shards="/shards", trials=7, space=space, head_width=512)

    found = given(spec)

    assert found.chosen == {
        "shards": "/shards", "trials": 7, "head_width": 512,
        "dropout": {"low": 0.1, "high": 0.2, "log": False, "points": 5},
    }  # fmt: skip
    assert option_text(found.defaults["lr"]) == "1e-05 to 0.01 on a log scale"


def test_a_limit_of_a_search_is_not_hidden_by_a_request_without_one() -> None:
    found = given(build(SearchSpec, shards="/shards", max_duration_seconds=60.0))

    assert found.chosen["max_duration_seconds"] == 60.0


def test_options_that_this_version_does_not_know_were_chosen() -> None:
    found = GivenOptions.of({"kind": "dream", "depth": 3}, {})

    assert (found.chosen, found.defaults) == ({"depth": 3}, {})
