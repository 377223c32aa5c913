import numpy as np
import pytest
from sklearn import metrics as sk

from tests.trained import lease_in
from trainer.errors import ModelMismatch, TrainerError
from trainer.evaluation.calibration import Calibration, LabelCalibration
from trainer.evaluation.multi_label_calibration import (
    apply_temperatures,
    choose_threshold,
    fit_label_calibration,
    label_decisions,
)
from trainer.evaluation.multi_label_metrics import multi_label_epoch_metrics, multi_label_metrics
from trainer.model.head import HeadConfig

CLASSES = ("effusion", "mass", "nodule")


def draw(count=120, seed=0, unknown=0.2):
    """Return logits and targets of three labels; each target is drawn with its own probability."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 3)) * 2 + [0.5, -1.0, -2.0]
    targets = (random.random((count, 3)) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    targets[random.random((count, 3)) < unknown] = -1
    return logits, targets


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def measured(logits, targets, calibration=None, **options):
    return multi_label_metrics(
        sigmoid(logits), targets, classes=CLASSES, calibration=calibration or Calibration(), **options
    )


@pytest.fixture(scope="module")
def found():
    return measured(*draw())


@pytest.mark.parametrize("label", range(3))
def test_each_label_has_the_figures_of_scikit_learn_on_its_known_images(found, label):
    logits, targets = draw()
    known = targets[:, label] >= 0
    truth, scores = targets[known, label], sigmoid(logits)[known, label]

    row = found["labels"][CLASSES[label]]

    assert row["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-12)
    assert row["average_precision"] == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-12)
    assert row["sensitivity"] == sk.recall_score(truth, scores >= 0.5)
    assert row["specificity"] == sk.recall_score(truth, scores >= 0.5, pos_label=0)
    assert row["accuracy"] == sk.accuracy_score(truth, scores >= 0.5)
    assert row["balanced_accuracy"] == sk.balanced_accuracy_score(truth, scores >= 0.5)
    assert row["precision"] == sk.precision_score(truth, scores >= 0.5)
    assert row["f1"] == sk.f1_score(truth, scores >= 0.5)
    assert row["loss"] == pytest.approx(sk.log_loss(truth, scores), abs=1e-12)
    assert row["brier"] == pytest.approx(sk.brier_score_loss(truth, scores), abs=1e-12)
    matrix = sk.confusion_matrix(truth, scores >= 0.5).tolist()
    assert [[row["true_negatives"], row["false_positives"]], [row["false_negatives"], row["true_positives"]]] == matrix
    assert (row["n"], row["positives"], row["unknown"]) == (known.sum(), truth.sum(), (~known).sum())


def test_macro_means_are_over_labels_and_micro_means_over_known_targets(found):
    logits, targets = draw()
    known = targets >= 0
    truth, scores = targets[known], sigmoid(logits)[known]

    rows = found["labels"].values()

    for name in ("auroc", "average_precision", "sensitivity", "specificity", "accuracy", "loss"):
        assert found["macro"][name] == pytest.approx(np.mean([row[name] for row in rows]), abs=1e-12)
    assert found["micro"]["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-12)
    assert found["micro"]["average_precision"] == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-12)
    assert found["micro"]["accuracy"] == sk.accuracy_score(truth, scores >= 0.5)
    assert found["micro"]["sensitivity"] == sk.recall_score(truth, scores >= 0.5)
    assert found["micro"]["n"] == found["known"] == known.sum()
    assert (found["auroc"], found["accuracy"]) == (found["macro"]["auroc"], found["micro"]["accuracy"])


def test_every_interval_contains_its_metric_and_has_a_width(found):
    rows = [*found["labels"].values(), found["macro"], found["micro"], found]

    checked = 0
    for row in rows:
        for name, interval in row["intervals"].items():
            if interval is not None:
                low, high = interval
                assert low <= row[name] <= high
                assert low < high
                checked += 1
    assert checked > 40


def test_a_label_whose_images_have_equal_scores_says_so_and_not_that_it_lacks_a_state():
    logits, targets = draw()
    logits[:, 0] = 0.3

    row = measured(logits, targets)["labels"][CLASSES[0]]

    assert (row["auroc"], row["undefined"]) == (0.5, {"auroc": "all images have the same score"})


def test_the_prediction_for_an_unknown_target_changes_nothing():
    logits, targets = draw()
    other = np.where(targets < 0, -logits * 3 + 1, logits)

    assert measured(other, targets) == measured(logits, targets)


def test_images_of_one_patient_widen_the_intervals_of_the_means():
    logits, targets = draw(60)
    logits, targets = np.repeat(logits, 4, axis=0), np.repeat(targets, 4, axis=0)
    patients = [f"patient {n // 4}" for n in range(len(targets))]

    alone = measured(logits, targets)
    grouped = measured(logits, targets, groups=patients)

    for kind, name in (("macro", "auroc"), ("macro", "sensitivity"), ("micro", "accuracy"), ("micro", "sensitivity")):
        assert _width(grouped[kind]["intervals"][name]) > 1.5 * _width(alone[kind]["intervals"][name])


def _width(interval):
    return interval[1] - interval[0]


def test_a_label_without_present_images_has_no_auroc_and_says_why():
    logits, targets = draw()
    targets[:, 2] = np.where(targets[:, 2] == 1, 0, targets[:, 2])

    found = measured(logits, targets)
    row = found["labels"]["nodule"]

    assert (row["auroc"], row["sensitivity"], row["balanced_accuracy"]) == (None, None, None)
    assert row["undefined"]["auroc"] == "undefined: every image of this split where nodule is known lacks it"
    assert row["specificity"] is not None
    assert found["macro"]["labels"]["auroc"] == 2
    assert found["macro"]["auroc"] == pytest.approx(
        (found["labels"]["effusion"]["auroc"] + found["labels"]["mass"]["auroc"]) / 2
    )


def test_a_label_that_is_unknown_everywhere_is_left_out_of_the_means_and_named():
    logits, targets = draw()
    targets[:, 1] = -1

    found = measured(logits, targets)

    assert found["labels"]["mass"]["n"] == 0
    assert found["labels"]["mass"]["accuracy"] is None
    assert found["undefined"]["mass"]["auroc"] == "undefined: mass is unknown of every image of this split"
    assert found["macro"]["labels"]["accuracy"] == 2


def test_a_split_without_known_targets_is_refused():
    logits, targets = draw()

    with pytest.raises(TrainerError, match="all targets of this split are unknown"):
        measured(logits, np.full_like(targets, -1))


def test_an_unknown_positive_label_is_refused():
    with pytest.raises(ModelMismatch, match="'covid' is not one of effusion, mass, nodule"):
        measured(*draw(), positive="covid")


def test_with_a_positive_label_the_headline_counts_are_its_own():
    found = measured(*draw(), positive="mass")

    row = found["labels"]["mass"]
    for name in ("sensitivity", "specificity", "false_negatives", "false_positives"):
        assert found[name] == row[name]
    assert found["intervals"]["sensitivity"] == row["intervals"]["sensitivity"]
    assert found["auroc"] == found["macro"]["auroc"]


@pytest.mark.parametrize("seed", range(4))
def test_the_metrics_of_an_epoch_are_those_of_the_whole_evaluation(seed):
    logits, targets = draw(40, seed)
    targets[:, 2] = np.where(seed == 3, -1, targets[:, 2])

    quick, whole = multi_label_epoch_metrics(logits, targets), measured(logits, targets)

    for name, value in quick.items():
        assert value == pytest.approx(whole[name], abs=1e-9)


def test_diverged_logits_give_no_finite_loss():
    logits, targets = draw()
    logits[3, 1] = np.nan

    assert np.isnan(multi_label_epoch_metrics(logits, targets)["loss"])


def test_each_label_gets_the_temperature_that_its_own_overconfidence_needs():
    logits, targets = draw(4000, unknown=0.1)

    found = fit_label_calibration(sigmoid(logits * [1.0, 3.0, 0.7]), targets, data="d", classes=CLASSES)

    assert [found.labels[name].temperature for name in CLASSES] == pytest.approx([1.0, 3.0, 0.7], rel=0.15)


def test_a_label_with_few_known_images_takes_the_temperature_of_all():
    logits, targets = draw(4000)
    targets[9:, 2] = -1

    found = fit_label_calibration(sigmoid(logits * 2), targets, data="d", classes=CLASSES)
    pooled = fit_label_calibration(
        sigmoid(logits * 2).reshape(-1, 1), targets.reshape(-1, 1), data="d", classes=("all",)
    )

    assert found.labels["nodule"].temperature == pooled.labels["all"].temperature != 1


def test_a_threshold_is_chosen_for_one_label_and_the_others_stay():
    logits, targets = draw(400)
    first = fit_label_calibration(sigmoid(logits), targets, data="d", classes=CLASSES)

    second = chosen(first, logits, targets, "mass", 0.95)
    third = chosen(second, logits, targets, "nodule", 0.9)
    metrics = measured(logits, targets, third)

    assert third.labels["mass"] == second.labels["mass"]
    assert third.labels["effusion"] == first.labels["effusion"]
    assert metrics["labels"]["mass"]["sensitivity"] == second.labels["mass"].sensitivity >= 0.95
    assert metrics["labels"]["nodule"]["sensitivity"] == third.labels["nodule"].sensitivity >= 0.9
    assert metrics["labels"]["mass"]["min_sensitivity"] == 0.95
    assert (
        metrics["labels"]["mass"]["at_default"]["sensitivity"]
        == measured(logits, targets)["labels"]["mass"]["sensitivity"]
    )
    assert metrics["labels"]["effusion"]["threshold"] == 0.5


def chosen(calibration, logits, targets, label, share):
    return choose_threshold(calibration, sigmoid(logits), targets, classes=CLASSES, label=label, min_sensitivity=share)


def test_a_label_without_present_images_gets_no_threshold():
    logits, targets = draw()
    targets[:, 0] = 0

    with pytest.raises(TrainerError, match="there are no effusion images to choose a threshold on"):
        chosen(Calibration(), logits, targets, "effusion", 0.9)


def test_the_decision_may_be_no_label_or_several():
    calibration = Calibration(labels={"mass": LabelCalibration(threshold=0.3)})
    probabilities = np.array([[0.1, 0.2, 0.4], [0.6, 0.3, 0.9], [0.5, 0.29, 0.0]])

    found = label_decisions(probabilities, calibration, CLASSES)

    assert found.tolist() == [[0, 0, 0], [1, 1, 1], [1, 0, 0]]


def test_a_temperature_divides_the_logit_and_keeps_certain_probabilities():
    calibration = Calibration(labels={"mass": LabelCalibration(temperature=2.0)})
    probabilities = np.array([[0.9, 0.9, 0.2], [0.0, 0.0, 1.0], [1.0, 1.0, 0.5]])

    found = apply_temperatures(probabilities, calibration, CLASSES)

    assert found[0].tolist() == pytest.approx([0.9, 0.75, 0.2])
    assert found[1:].tolist() == [[0.0, 0.0, 1.0], [1.0, 1.0, 0.5]]


def test_the_calibration_of_one_class_an_image_has_no_field_for_labels(tmp_path):
    Calibration(temperature=1.5).write(tmp_path, "m", lease_in(tmp_path))

    assert "labels" not in (tmp_path / "calibration.json").read_text()
    assert Calibration.read(tmp_path, "m").temperature == 1.5


def test_the_configuration_of_one_class_an_image_has_no_field_for_labels():
    config = HeadConfig(classes=("covid", "normal"), width=8, dropout=0.1, image_size=32)

    assert "multi_label" not in config.to_json()
    assert config.model_copy(update={"multi_label": True}).to_json()["multi_label"] is True


def test_a_label_without_an_error_widens_the_interval_of_the_macro_mean():
    logits, targets = draw(400, unknown=0.0)
    targets[:, 2] = np.arange(400) < 3  # three images, all found
    logits[:, 2] = np.where(targets[:, 2] == 1, 3.0, -3.0)

    found = measured(logits, targets)

    reach = 1 - 0.025 ** (1 / 3)  # of three images without an error
    for metric in ("sensitivity", "auroc"):
        low, high = found["macro"]["intervals"][metric]
        assert found["macro"][metric] - low > reach / 3
        assert high > found["macro"][metric]


def test_of_labels_without_any_error_the_macro_mean_has_an_interval():
    _, targets = draw(60, unknown=0.0)

    found = measured(np.where(targets == 1, 2.0, -2.0), targets)

    assert found["macro"]["sensitivity"] == 1
    low, high = found["macro"]["intervals"]["sensitivity"]
    assert 0.8 < low < high == 1
