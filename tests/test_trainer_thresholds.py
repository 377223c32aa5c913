import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from cluster.files import write_json
from tests.datasets import index_of
from tests.trained import lease_in
from trainer.errors import CheckpointError, SpecError, TrainerError
from trainer.evaluation.calibration import Calibration
from trainer.evaluation.decision_text import (
    choice_of,
    chosen_on,
    decision_line,
    may_have_chosen,
    positives_needed,
    supported_text,
    threshold_lines,
)
from trainer.evaluation.named_thresholds import (
    ChoiceImages,
    StoredModel,
    choose_named,
    read_calibration,
    refuse_taken_name,
    store_named,
    threshold_evidence,
)
from trainer.evaluation.scoring import ModelOutputs
from trainer.evaluation.threshold_choice import requested_positives, supported_sensitivity
from trainer.model.head import HeadConfig
from trainer.model.thresholds import NamedThreshold, ThresholdChoice, read_threshold, threshold_names
from trainer.specs import EvaluateSpec, ExportSpec, PredictSpec, build

WEIGHTS = "ab" * 32
CONFIG = HeadConfig(classes=("covid", "normal"), width=8, dropout=0.1, image_size=32)


def stored(tmp_path, name="careful", *, label="covid", **choice):
    """Write a threshold beside a model of temperature 1.3 and return the model."""
    Calibration(temperature=1.3).write(tmp_path, WEIGHTS, lease_in(tmp_path))
    values = {"threshold": 0.2, "temperature": 1.3, **choice}
    NamedThreshold(model=WEIGHTS, name=name, classes={label: ThresholdChoice(**values)}).write(
        tmp_path, lease_in(tmp_path)
    )
    return StoredModel(folder=tmp_path, config=CONFIG, weights=WEIGHTS)


def test_a_model_decides_by_the_most_probable_class_unless_a_threshold_is_named(tmp_path):
    model = stored(tmp_path)

    default, careful = read_calibration(model, None), read_calibration(model, "careful")

    assert (default.temperature, default.threshold, default.threshold_name) == (1.3, None, None)
    assert (careful.temperature, careful.positive, careful.threshold) == (1.3, "covid", 0.2)
    assert careful.threshold_name == "careful"


def test_the_threshold_that_version_0_1_0_kept_in_the_calibration_has_a_name_and_does_not_decide(tmp_path):
    old = {"version": 1, "model": WEIGHTS, "temperature": 0.6, "positive": "covid", "threshold": 0.1, "data": "",
           "min_sensitivity": 0.99, "sensitivity": 1.0, "samples": 60}  # fmt: skip
    write_json(tmp_path / "calibration.json", old)
    model = StoredModel(folder=tmp_path, config=CONFIG, weights=WEIGHTS)

    default, named = read_calibration(model, None), read_calibration(model, "sensitivity-0.99")

    assert threshold_names(tmp_path) == ("sensitivity-0.99",)
    assert (default.temperature, default.positive, default.threshold) == (0.6, None, None)
    assert (named.positive, named.threshold, named.min_sensitivity) == ("covid", 0.1, 0.99)


def test_a_model_without_thresholds_says_how_to_choose_one(tmp_path):
    with pytest.raises(SpecError, match="has no threshold 'x'; it has: none; evaluate --min-sensitivity chooses one"):
        read_threshold(tmp_path, "x")


def test_a_threshold_of_other_weights_is_refused(tmp_path):
    stored(tmp_path)

    with pytest.raises(CheckpointError, match="belongs to other weights; choose the threshold again"):
        read_threshold(tmp_path, "careful", weights="cd" * 32)


def test_a_threshold_that_was_chosen_at_another_temperature_is_refused(tmp_path):
    model = stored(tmp_path, temperature=2.0)

    with pytest.raises(
        CheckpointError, match=r"was chosen at the temperature 2 and the model has 1.3; choose it again"
    ):
        read_calibration(model, "careful")


def test_a_threshold_of_an_unknown_class_is_refused(tmp_path):
    model = stored(tmp_path, label="flu")

    with pytest.raises(CheckpointError, match="threshold 'careful' is about flu, which does not fit the model"):
        read_calibration(model, "careful")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", json.dumps({"model": WEIGHTS, "name": "careful", "classes": {}}),
     json.dumps({"model": WEIGHTS, "name": "careful", "classes": {"covid": {"threshold": 2}}}),
     '{"model": "x", "name": "careful", "classes": {"covid": {"threshold": NaN}}}'],
)  # fmt: skip
def test_a_damaged_threshold_is_refused_and_may_be_replaced(tmp_path, content):
    stored(tmp_path)
    (tmp_path / "thresholds" / "careful.json").write_text(content)

    with pytest.raises(CheckpointError, match="is damaged; choose the threshold again"):
        read_threshold(tmp_path, "careful")
    refuse_taken_name(tmp_path, CONFIG, "careful", "normal")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "x y", "x\n", "é", "a" * 65])
@pytest.mark.parametrize("kind", [PredictSpec, ExportSpec, EvaluateSpec])
def test_a_name_that_could_leave_its_folder_or_a_line_is_refused(kind, name):
    more = {PredictSpec: {"images": ("x",)}, ExportSpec: {}, EvaluateSpec: {"shards": "x"}}[kind]

    with pytest.raises(SpecError, match="is not a name; use up to 64 letters, digits, dots, dashes and underscores"):
        build(kind, model="m", threshold=name, **more)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"min_sensitivity": 0.9, "threshold": "x"}, "--min-sensitivity chooses a threshold and --threshold names one"),
        ({"threshold_name": "x"}, "--threshold-name names what --min-sensitivity chooses; add --min-sensitivity"),
        ({"min_sensitivity": 0.9, "threshold_name": "default"}, "is the name of the default decision"),
        ({"min_sensitivity": 0.9, "threshold_name": "a b"}, "--threshold-name 'a b' is not a name"),
    ],
)
def test_options_that_contradict_are_refused(options, refusal):
    with pytest.raises(SpecError, match=refusal):
        build(EvaluateSpec, model="m", shards="s", **options)


def test_default_names_the_default_decision():
    assert build(PredictSpec, model="m", images=("x",), threshold="default").threshold is None


def test_25_positives_without_a_miss_support_a_sensitivity_of_0_887():
    assert supported_sensitivity(np.ones(25, dtype=bool), ()) == pytest.approx(0.05 ** (1 / 25), rel=1e-9)
    assert round(0.05 ** (1 / 25), 3) == 0.887


@given(found=st.integers(1, 60), missed=st.integers(0, 20))
def test_the_supported_sensitivity_is_the_one_at_which_so_many_hits_have_a_chance_of_5_percent(found, missed):
    bound = supported_sensitivity(np.arange(found + missed) < found, ())

    assert binom.sf(found - 1, found + missed, bound) == pytest.approx(0.05, rel=1e-6)


def test_positives_of_one_patient_support_less():
    groups = [f"p{number // 5}" for number in range(25)]

    assert supported_sensitivity(np.ones(25, dtype=bool), groups) == pytest.approx(0.05 ** (1 / 5))


def test_a_supported_sensitivity_is_rounded_down():
    assert supported_text(0.6899) == "0.689"


def test_the_supported_sensitivity_holds_in_19_of_20_splits():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        threshold = np.sort(random.random(40))[2]  # 38 of 40 positives at or above it; scores are uniform
        held += 1 - threshold >= supported_sensitivity(np.arange(40) < 38, ())

    assert 0.94 <= held / 2000 <= 0.96


def test_the_supported_sensitivity_holds_where_the_threshold_finds_more_than_was_requested():
    random = np.random.default_rng(0)
    exceeded = 0
    for _ in range(4000):
        positives = 1 - random.random(25)  # uniform scores; negatives lie below 0.376 and below 0.21
        requested = requested_positives(positives, 0.8)
        cut = next(cut for cut in (0.376, 0.21, 0.0) if (positives >= cut).mean() >= 0.8)
        exceeded += 1 - cut < supported_sensitivity(positives >= cut, (), requested=requested)

    assert exceeded / 4000 <= 0.05  # 7 % where the request has all of the error and what was found half of it again


def test_more_positives_than_requested_support_more():
    found = np.ones(1000, dtype=bool)

    bound = supported_sensitivity(found, (), requested=np.arange(1000) < 900)

    assert bound == pytest.approx((0.025 / 100) ** (1 / 1000))


def test_a_number_that_was_requested_has_half_of_the_error_where_more_might_have_been_found():
    requested = np.arange(100) < 90

    bound = supported_sensitivity(requested, (), requested=requested)

    assert binom.sf(89, 100, bound) == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize(("wanted", "needed"), [(0.99, 299), (0.95, 59), (0.5, 5), (1.0, None)])
def test_a_sensitivity_needs_so_many_positives_without_a_miss(wanted, needed):
    assert positives_needed(wanted) == needed


def test_the_lines_of_a_threshold_say_price_support_and_what_was_reached():
    choice = {"positive": "covid", "min_sensitivity": 0.99, "sensitivity": 1.0, "positives": 25, "lower_bound": 0.887,
              "negatives": 87, "false_positives": 15, "default_sensitivity": 0.92, "default_false_positives": 5,
              "judged_split": "test", "judged_sensitivity": 0.84, "reached": False,
              "judged_interval": [0.6392, 0.9546]}  # fmt: skip

    assert threshold_lines({"threshold_choices": [choice]}) == [
        '"covid": on the valid split the threshold gives 15 false positives of 87 at a sensitivity of 1.0000; the '
        "default decision gives 5 at 0.9200",
        '"covid": 25 positives of the valid split support a sensitivity of only 0.887 at this threshold with 95 % '
        "confidence (one-sided), not 0.99; that takes 299 independent positives without a miss, chosen with "
        "--min-sensitivity 1",
        '"covid": the test split does not reach 0.99: its sensitivity is 0.8400 (0.6392 to 0.9546)',
    ]


def test_positives_of_fewer_patients_are_said_to_be_of_so_many_groups(tmp_path):
    hits = np.arange(6) < 4
    outputs = ModelOutputs(
        logits=np.where(hits[:, None], [[2.0, 0.0]], [[0.0, 2.0]]), labels=np.where(hits, 0, 1),
        groups=("a", "a", "b", "", "c", "d"),
    )  # fmt: skip
    chosen_from = ChoiceImages(outputs=outputs, chosen_on="valid", data="")

    choice = choose_named(stored(tmp_path), chosen_from, name="new", positive="covid", min_sensitivity=0.9)

    found = choice.classes["covid"].model_dump() | {"positive": "covid"}
    line = threshold_lines({"threshold_choices": [found]})[1]
    assert line.startswith('"covid": 4 positives of 3 groups of the valid split support a sensitivity of only 0.')


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"threshold": None}, "the most probable class (default)"),
        ({}, "the most probable class (default)"),
        (
            {"threshold": 0.31271, "positive": "covid", "threshold_name": "careful"},
            '"covid" if its probability is at least 0.3127: careful',
        ),
        ({"threshold": 0.31271, "positive": "covid"}, '"covid" if its probability is at least 0.3127'),
        ({"labels": {}, "threshold_name": None}, "each label whose probability is at least 0.5 (default)"),
        ({"labels": {}, "threshold_name": "careful"}, "each label at its threshold: careful"),
    ],
)
def test_a_result_names_its_decision_rule(values, line):
    assert decision_line(values) == line


def multi_label(tmp_path):
    config = CONFIG.model_copy(update={"multi_label": True})
    return StoredModel(folder=tmp_path, config=config, weights=WEIGHTS)


def named(**thresholds):
    classes = {label: ThresholdChoice(threshold=value, temperature=1.0) for label, value in thresholds.items()}
    return NamedThreshold(model=WEIGHTS, name="careful", classes=classes)


def test_a_multi_label_model_without_a_calibration_file_decides_each_label_on_its_own(tmp_path):
    calibration = read_calibration(multi_label(tmp_path), None)

    assert {name: label.threshold for name, label in calibration.labels.items()} == {"covid": None, "normal": None}


def test_thresholds_of_two_labels_that_were_chosen_at_the_same_time_are_both_kept(tmp_path):
    model = multi_label(tmp_path)
    first, second = named(covid=0.2), named(normal=0.3)  # neither has seen the other

    store_named(first, model, "covid", lease_in(tmp_path))
    store_named(second, model, "normal", lease_in(tmp_path))

    kept = read_threshold(tmp_path, "careful").classes
    assert {label: choice.threshold for label, choice in kept.items()} == {"covid": 0.2, "normal": 0.3}


@pytest.mark.parametrize(
    ("images", "where"), [("valid", "the valid split"), ("out of fold", "the predictions out of fold")]
)
def test_a_class_without_images_to_choose_on_is_refused_with_the_place_where_they_are_missing(tmp_path, images, where):
    outputs = ModelOutputs(logits=np.zeros((3, 2)), labels=np.ones(3, dtype=np.int64))
    chosen_from = ChoiceImages(outputs=outputs, chosen_on=images, data="")

    with pytest.raises(TrainerError, match=f"there are no covid images to choose a threshold on in {where}; pack"):
        choose_named(stored(tmp_path), chosen_from, name="new", positive="covid", min_sensitivity=0.9)


def test_each_label_has_the_place_where_its_own_threshold_was_chosen():
    choices = [{"positive": "covid", "chosen_on": "valid"}, {"positive": "normal", "chosen_on": "out of fold"}]
    metrics = {"threshold_choices": choices}

    found = {label: chosen_on(choice_of(metrics, label)) for label in ("covid", "normal", "other")}

    assert found == {
        "covid": "the valid split", "normal": "the predictions out of fold", "other": "the valid split",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("images", "splits"), [("valid", ["valid"]), ("out of fold", ["train", "valid"]), (None, ["valid"])]
)
def test_a_threshold_may_have_been_chosen_on_images_of_these_splits(images, splits):
    found = [split for split in ("train", "valid", "test") if may_have_chosen({"chosen_on": images}, split)]

    assert found == splits


def test_a_threshold_of_another_data_set_was_not_chosen_on_the_split_of_the_same_name(tmp_path):
    index = index_of([4], split="valid")
    metrics = {"split": "valid", "sensitivity": 0.95}
    own, other = (
        threshold_evidence(
            NamedThreshold(model=WEIGHTS, name="careful", classes={
                "covid": ThresholdChoice(threshold=0.2, temperature=1.0, min_sensitivity=0.9, data=data)
            }), metrics, index,
        )[0]
        for data in (index.digest, "0" * 64)
    )  # fmt: skip

    assert (chosen_on(own), chosen_on(other)) == ("the valid split", "the valid split of another data set")
    assert (may_have_chosen(own, "valid"), may_have_chosen(other, "valid")) == (True, False)
    assert [threshold_lines({"threshold_choices": [one]})[-1] for one in (own, other)] == [
        '"covid": the valid split, on which the threshold was chosen, reaches 0.9: its sensitivity is 0.9500',
        '"covid": the valid split reaches 0.9: its sensitivity is 0.9500',
    ]


def test_a_damaged_threshold_of_other_labels_is_replaced_and_named(tmp_path, caplog):
    (tmp_path / "thresholds").mkdir()
    (tmp_path / "thresholds" / "careful.json").write_text("{")

    store_named(named(covid=0.2), multi_label(tmp_path), "covid", lease_in(tmp_path))

    assert list(read_threshold(tmp_path, "careful").classes) == ["covid"]
    assert "careful.json is damaged" in caplog.text
    assert "the thresholds of its other labels are not kept" in caplog.text


def test_a_miss_never_supports_more_than_none_does():
    groups = [f"patient {n // 2}" for n in range(24)]

    without, with_one = (supported_sensitivity(np.arange(24) >= misses, groups) for misses in (0, 1))

    assert with_one <= without == pytest.approx(0.05 ** (1 / 12))
