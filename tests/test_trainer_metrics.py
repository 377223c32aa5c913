import json

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from trainer.errors import ModelMismatch, TrainerError
from trainer.evaluation.bootstrap import weighted_metrics
from trainer.evaluation.metrics import BINS, classification_metrics

COVID = ("covid", "normal")
THREE = ("cat", "dog", "fox")


def random_predictions(count, classes, seed=0):
    """Probabilities (count, classes) and labels of a model that is mostly correct; some scores tie."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes))
    logits[np.arange(count), labels] += 1.0
    odds = np.exp(logits)
    sixty_fourths = np.floor(64 * odds / odds.sum(axis=1, keepdims=True))  # binary fractions: ties stay ties
    sixty_fourths[:, 0] += 64 - sixty_fourths.sum(axis=1)
    return sixty_fourths / 64, labels


def test_the_metrics_of_four_known_images_are_exact():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    labels = np.array([0, 0, 1, 1])

    found = classification_metrics(probabilities, labels, classes=COVID, positive="covid", intervals=False)

    assert found["confusion_matrix"] == [[1, 1], [0, 2]]
    assert (found["false_negatives"], found["false_positives"]) == (1, 0)
    assert (found["accuracy"], found["sensitivity"], found["specificity"]) == (0.75, 0.5, 1.0)
    assert found["auroc"] == 1.0
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.7, 0.8]).mean())
    assert found["brier"] == pytest.approx(np.mean([0.1**2, 0.6**2, 0.3**2, 0.2**2]))
    assert found["per_class"]["normal"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2})


@pytest.mark.parametrize("count", [1, 7, 500])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_calibration_error_is_the_one_of_torchmetrics(count, classes):
    odds = np.random.default_rng(count).dirichlet([0.5] * classes, size=count)
    labels = np.random.default_rng(classes).integers(0, classes, count)

    found = classification_metrics(odds, labels, classes=THREE[:classes], positive=None, intervals=False)

    theirs = multiclass_calibration_error(
        torch.from_numpy(odds), torch.from_numpy(labels), num_classes=classes, n_bins=BINS
    )
    assert found["ece"] == pytest.approx(float(theirs), abs=1e-6)


def test_a_model_that_is_certain_and_correct_has_no_calibration_error():
    found = classification_metrics(
        np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 0]), classes=THREE, positive=None, intervals=False
    )

    assert found["ece"] == 0


def test_every_metric_is_a_json_value():
    probabilities, labels = random_predictions(50, 3)

    found = classification_metrics(probabilities, labels, classes=THREE, positive=None, threshold=0.3)

    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_low_threshold_trades_false_negatives_for_false_positives_and_keeps_the_metrics_at_the_default():
    probabilities, labels = random_predictions(400, 2)

    found = classification_metrics(
        probabilities, labels, classes=COVID, positive="covid", threshold=0.1, intervals=False
    )

    assert found["false_negatives"] < found["at_default"]["false_negatives"]
    assert found["false_positives"] > found["at_default"]["false_positives"]
    assert found["at_default"]["false_negatives"] == int(((labels == 0) & (probabilities[:, 0] < 0.5)).sum())


def test_the_other_class_can_be_the_positive_one():
    probabilities, labels = random_predictions(200, 2)

    covid = classification_metrics(probabilities, labels, classes=COVID, positive="covid", intervals=False)
    normal = classification_metrics(probabilities, labels, classes=COVID, positive="normal", intervals=False)

    assert covid["sensitivity"] == normal["specificity"]
    assert covid["false_negatives"] == normal["false_positives"]
    assert covid["auroc"] == pytest.approx(normal["auroc"])


def test_the_auroc_of_many_classes_is_the_one_vs_rest_macro_average():
    probabilities, labels = random_predictions(300, 3)

    found = classification_metrics(probabilities, labels, classes=THREE, positive="dog", intervals=False)

    assert found["auroc"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"))


def test_a_split_of_one_class_gives_the_reason_for_an_undefined_auroc():
    probabilities, _ = random_predictions(5, 2)

    found = classification_metrics(probabilities, np.zeros(5, dtype=np.int64), classes=COVID, positive="covid")

    assert found["auroc"] is None
    assert found["undefined"]["auroc"] == "undefined: all images of this split are covid"
    assert found["specificity"] is None
    assert found["intervals"]["auroc"] is None


def test_equal_scores_are_the_reason_for_an_auroc_without_an_interval():
    found = classification_metrics(np.full((6, 2), 0.5), np.arange(6) % 2, classes=COVID, positive="covid")

    assert (found["auroc"], found["intervals"]["auroc"]) == (0.5, None)
    assert found["undefined"] == {"auroc": "all images have the same score"}


def test_a_class_without_images_is_named_in_the_reason():
    probabilities, labels = random_predictions(60, 3)
    kept = labels != 2

    found = classification_metrics(probabilities[kept], labels[kept], classes=THREE, positive=None, intervals=False)

    for name in ("auroc", "average_precision"):
        assert found["undefined"][name] == "macro average without fox: this split has no such images"
    assert found["undefined"]["balanced_accuracy"] == "mean recall without fox: this split has no such images"
    assert found["per_class"]["fox"]["recall"] is None


@pytest.mark.parametrize("classes", [2, 3])
def test_the_weighted_metrics_of_a_resample_equal_those_of_scikit_learn(classes):
    probabilities, labels = random_predictions(120, classes, seed=3)
    weights = np.random.default_rng(1).integers(0, 4, (6, 120)).astype(float)

    found = weighted_metrics(weights, probabilities, labels, positive=1)

    for row, drawn_weights in enumerate(weights):
        w = {"sample_weight": drawn_weights}
        ranked = [1] if classes == 2 else range(3)
        expected = {
            "loss": sk.log_loss(labels, probabilities, **w),
            "auroc": np.mean([sk.roc_auc_score(labels == c, probabilities[:, c], **w) for c in ranked]),
            "average_precision": np.mean(
                [sk.average_precision_score(labels == c, probabilities[:, c], **w) for c in ranked]
            ),
            "brier": sk.brier_score_loss(labels, probabilities, **w),
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected)


def test_every_interval_contains_its_metric():
    probabilities, labels = random_predictions(500, 3)

    found = classification_metrics(probabilities, labels, classes=THREE, positive="cat")

    for name, (low, high) in found["intervals"].items():
        assert low < found[name] < high, name


def test_more_images_of_the_same_patients_do_not_narrow_the_interval():
    probabilities, labels = random_predictions(60, 2)
    patients = [f"{patient:02}" for patient in range(60) for _ in range(10)]
    copies = np.repeat(np.arange(60), 10)

    alone = classification_metrics(probabilities, labels, classes=COVID, positive=None)["intervals"]["accuracy"]
    grouped = classification_metrics(
        probabilities[copies], labels[copies], classes=COVID, positive=None, groups=patients
    )
    naive = classification_metrics(probabilities[copies], labels[copies], classes=COVID, positive=None)

    assert np.ptp(grouped["intervals"]["accuracy"]) == pytest.approx(np.ptp(alone), rel=0.05)
    assert np.ptp(grouped["intervals"]["accuracy"]) >= np.ptp(alone)
    assert np.ptp(naive["intervals"]["accuracy"]) < 0.5 * np.ptp(alone)


def test_the_same_seed_gives_the_same_intervals():
    probabilities, labels = random_predictions(80, 2)

    first, again, other = (
        classification_metrics(probabilities, labels, classes=COVID, positive=None, seed=seed)["intervals"]
        for seed in (1, 1, 2)
    )

    assert first == again
    assert first != other


def test_a_hundred_thousand_images_have_the_interval_of_as_many_independent_ones():
    probabilities, labels = random_predictions(100_000, 2)

    found = classification_metrics(probabilities, labels, classes=COVID, positive=None)

    low, high = found["intervals"]["accuracy"]
    share = found["accuracy"]
    assert (high - low) / 2 == pytest.approx(1.96 * (share * (1 - share) / 100_000) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("probabilities", "labels", "positive", "error", "words"),
    [
        (np.zeros((0, 2)), np.zeros(0, dtype=int), None, TrainerError, "no samples to evaluate"),
        (np.array([[np.nan, 1.0]]), np.array([0]), None, TrainerError, "a probability is not finite"),
        (np.array([[0.2, 0.3, 0.5]]), np.array([0]), None, ModelMismatch, "do not match 1 labels and 2 classes"),
        (np.array([[0.5, 0.5]]), np.array([0]), "cov", ModelMismatch, "'cov' is not one of covid, normal"),
    ],
)
def test_invalid_predictions_are_refused(probabilities, labels, positive, error, words):
    with pytest.raises(error, match=words):
        classification_metrics(probabilities, labels, classes=COVID, positive=positive)
