import numpy as np
import pytest

from trainer.evaluation.metric_text import (
    digits_text,
    figure_text,
    headline_metrics,
    interval_text,
    label_headline,
    prevalence_lines,
    share_text,
)
from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.training_text import training_lines

TWO = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
CLASSES = ("NORMAL", "PNEUMONIA")


def named(metrics):
    return [(one.name, one.of, one.value) for one in headline_metrics(metrics)]


def test_without_a_positive_class_the_recall_of_both_classes_comes_first():
    metrics = classification_metrics(TWO, np.array([0, 0, 1, 1]), classes=CLASSES, positive=None)

    assert not metrics["positive_stated"]
    assert named(metrics)[:2] == [("recall", 'of "NORMAL"', 0.5), ("recall", 'of "PNEUMONIA"', 1.0)]


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (0.99994, 4, "0.9999"),
        (0.99998, 4, ">0.9999"),
        (1.0, 4, "1.0000"),
        (1.00001, 4, "1.0000"),
        (1 - 2**-53, 4, "1.0000"),  # rounding of sums
        (0.9996, 3, ">0.999"),
        (0.00002, 4, "<0.0001"),
        (0.0, 4, "0.0000"),
        (0, 4, "0.0000"),
        (1, 4, "1.0000"),
        (-0.1, 4, "-0.1000"),
        (-0.00001, 4, "0.0000"),
    ],
)
def test_only_zero_and_one_are_shown_as_such(value, places, text):
    found = figure_text(value, places)

    assert found == text


@pytest.mark.parametrize(
    ("value", "digits", "share"),
    [
        (0.99994, "0.9999", ">99.9"),
        (0.99998, ">0.9999", ">99.9"),
        (1.0, "1", "100.0"),
        (1 - 2**-53, "1", "100.0"),  # rounding of sums
        (0.00002, "2e-05", "<0.1"),
        (0.0, "0", "0.0"),
        (2**-53, "1.11e-16", "0.0"),
        (0.1234567, "0.1235", "12.3"),
    ],
)
def test_significant_digits_and_percentages_follow_the_same_rule(value, digits, share):
    found = digits_text(value), share_text(value)

    assert found == (digits, share)


@pytest.mark.parametrize("of", ["loss", "valid_loss", "validation loss", "calibration_slope", "temperature"])
def test_one_is_no_limit_of_a_loss_and_zero_is(of):
    found = [figure_text(0.99998, of=of), digits_text(0.99998, of=of), figure_text(0.00001, of=of)]

    assert found == ["1.0000", "1", "<0.0001"]
    assert interval_text((0.00001, 0.99998), of=of) == " (<0.0001 to 1.0000)"


def test_a_stated_positive_class_has_a_sensitivity():
    metrics = classification_metrics(TWO, np.array([0, 0, 1, 1]), classes=CLASSES, positive="PNEUMONIA")

    assert metrics["positive_stated"]
    assert named(metrics)[:2] == [
        ("sensitivity", 'of "PNEUMONIA"', 1.0),
        ("specificity", 'of all but "PNEUMONIA"', 0.5),
    ]


@pytest.mark.parametrize("positive", [None, "2"])
def test_of_many_classes_accuracy_balanced_accuracy_and_the_lowest_recall_come_first(positive):
    probabilities, labels = np.eye(3)[[0, 0, 1, 2, 1]], np.array([0, 0, 0, 1, 1])

    found = named(classification_metrics(probabilities, labels, classes=("0", "1", "2"), positive=positive))

    assert [name for name, _, _ in found[:3]] == ["accuracy", "balanced accuracy", "lowest recall"]
    assert found[2] == ("lowest recall", 'of "1"', 0.5)
    assert ("sensitivity", 'of "2"', None) in found or positive is None


def test_predictive_values_are_given_with_the_prevalence_they_are_about():
    found = {"positive": "covid", "prevalence": 0.02, "ppv": 0.5, "npv": None, "intervals": {"ppv": [0.25, 0.75]}}

    assert prevalence_lines({"at_prevalence": found}) == [
        'at a prevalence of 0.02 of "covid": PPV 0.5000 (95 % interval 0.2500 to 0.7500), NPV undefined, '
        "if sensitivity and specificity are the same there"
    ]


def test_a_published_head_has_a_line_before_scaling_if_scaling_changed_a_figure_that_the_baselines_show():
    row = {"auroc": 0.8, "accuracy": 0.7, "loss": 0.9, "intervals": {"auroc": [0.75, 0.85], "accuracy": [0.6, 0.8]}}
    baseline = {"head": "lda", "auroc": 0.81, "accuracy": 0.7, "loss": 1.0, "intervals": {}}

    changed, same = (
        training_lines(
            {
                "metrics": {"split": "valid", "auroc": auroc, "accuracy": 0.7, "before_scaling": row},
                "baselines": [baseline],
            }
        )
        for auroc in (0.82, 0.8)
    )

    own = "accuracy 0.7000 (0.6000 to 0.8000), auroc 0.8000 (0.7500 to 0.8500)"
    assert changed[0] == ("unscaled", f"published head before temperature scaling, as the baselines: {own}")
    assert [label for label, _ in same] == ["baseline"]


def test_the_mean_auroc_of_many_classes_is_called_so_and_an_undefined_recall_says_why():
    probabilities, labels = np.eye(3)[[0, 0, 1, 1]], np.array([0, 0, 0, 1])

    found = {one.name: one for one in headline_metrics(
        classification_metrics(probabilities, labels, classes=("0", "1", "2"), positive="2", intervals=False)
    )}  # fmt: skip

    assert found["mean AUROC"].note == "macro average without 2: this split has no such images"
    assert found["balanced accuracy"].note == "mean recall without 2: this split has no such images"
    assert (found["sensitivity"].value, found["sensitivity"].note) == (None, "this split has no such images")
    assert found["specificity"].note == ""


@pytest.mark.parametrize(
    ("positive", "names"),
    [
        (None, ["micro accuracy", "macro AUROC", "macro sensitivity", "macro specificity", "micro loss"]),
        ("a", ["micro accuracy", "macro AUROC", 'sensitivity of "a"', 'specificity of "a"', "micro loss"]),
    ],
)
def test_the_first_metrics_of_several_labels_say_what_they_are_means_of(positive, names):
    metrics = {
        "classes": ["a", "b"], "positive": positive, "accuracy": 0.9, "auroc": 0.8, "sensitivity": None,
        "specificity": 1.0, "loss": 0.2, "macro": {"labels": {"auroc": 1, "sensitivity": 2}},
        "intervals": {"auroc": [0.7, 0.9]},
    }  # fmt: skip

    found = label_headline(metrics)

    assert [f"{one.name} {one.of}".strip() for one in found] == names
    assert (found[1].value, found[1].interval, found[1].note) == (0.8, [0.7, 0.9], "mean of 1 of 2 labels")
    assert [one.note for one in found if one is not found[1]] == [""] * 4


@pytest.mark.parametrize(
    ("classes", "multi_label", "text"),
    [
        (["a", "b"], False, "accuracy 0.7000, auroc undefined"),
        (["a", "b", "c"], False, "accuracy 0.7000, mean auroc undefined"),
        (["a", "b", "c"], True, "micro accuracy 0.7000, macro auroc undefined"),
    ],
)
def test_the_figures_of_a_baseline_say_what_they_are_means_of(classes, multi_label, text):
    baseline = {"head": "lda", "auroc": None, "accuracy": 0.7, "loss": 1.0, "intervals": {}}
    metrics = {"split": "valid", "classes": classes, "multi_label": multi_label}

    (line,) = training_lines({"metrics": metrics, "baselines": [baseline]})

    assert line == ("baseline", f"linear discriminant analysis (lda) on the same features: {text}")
