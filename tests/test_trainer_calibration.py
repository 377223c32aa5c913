import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, recall_score

from tests.trained import lease_in
from trainer.errors import CheckpointError, TrainerError
from trainer.evaluation.calibration import (
    Calibration,
    fit_temperature,
    predicted_classes,
    threshold_for_sensitivity,
)
from trainer.evaluation.temperature import apply_temperature

WEIGHTS = "ab" * 32


def overconfident(count, sharpness, seed=0):
    """Probabilities (count, 2) whose logits are `sharpness` times too large, and labels that follow the true ones."""
    random = np.random.default_rng(seed)
    true = 1 / (1 + np.exp(-random.normal(0, 2, count)))
    labels = (random.random(count) > true).astype(np.int64)
    return apply_temperature(np.stack([true, 1 - true], axis=1), 1 / sharpness), labels


def test_the_temperature_undoes_overconfidence():
    probabilities, labels = overconfident(20_000, sharpness=3.0)

    temperature = fit_temperature(probabilities, labels)

    assert temperature == pytest.approx(3.0, rel=0.05)
    assert log_loss(labels, apply_temperature(probabilities, temperature)) < log_loss(labels, probabilities) - 0.1


def test_the_temperature_of_a_model_without_errors_stays_within_bounds():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])

    assert fit_temperature(probabilities, np.array([0, 1])) >= 0.5


def test_a_temperature_divides_the_logits():
    logits = np.array([[2.0, -1.0, 0.5]])
    softmax = np.exp(logits) / np.exp(logits).sum()

    assert apply_temperature(softmax, 2.0) == pytest.approx(np.exp(logits / 2) / np.exp(logits / 2).sum())


def test_a_probability_of_zero_stays_zero():
    assert apply_temperature(np.array([[0.0, 1.0]]), 3.0).tolist() == [[0.0, 1.0]]


def test_the_threshold_reaches_the_sensitivity_at_the_fewest_false_positives():
    scores = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.1])
    labels = np.array([0, 0, 0, 0, 1, 1])
    probabilities = np.stack([scores, 1 - scores], axis=1)

    half = threshold_for_sensitivity(probabilities, labels, positive=0, min_sensitivity=0.5, name="covid")
    three_of_four = threshold_for_sensitivity(probabilities, labels, positive=0, min_sensitivity=0.75, name="covid")

    assert half == (pytest.approx(0.75), 0.5)  # the third costs a false positive
    assert three_of_four == (pytest.approx(0.2), 1.0)  # the fourth costs nothing more


def test_a_threshold_finds_all_images_of_the_class_where_that_costs_no_false_positive():
    covid, normal = [0.99] * 14 + [0.6], [0.02, 0.01]
    probabilities = np.stack([covid + normal, 1 - np.array(covid + normal)], axis=1)

    found = threshold_for_sensitivity(
        probabilities, np.array([0] * 15 + [1] * 2), positive=0, min_sensitivity=0.9, name="covid"
    )

    assert found == (pytest.approx(0.31), 1.0)


@given(
    scores=st.lists(st.integers(0, 64), min_size=1, max_size=40),
    flips=st.integers(0, 2**40),
    min_sensitivity=st.floats(0.01, 1.0),
)
def test_the_threshold_always_reaches_the_sensitivity_and_no_other_finds_more_or_alarms_less(
    scores, flips, min_sensitivity
):
    at = np.array(scores) / 64
    labels = np.array([(flips >> bit) & 1 for bit in range(len(scores))])
    labels[0] = 0
    probabilities = np.stack([at, 1 - at], axis=1)

    threshold, reached = threshold_for_sensitivity(
        probabilities, labels, positive=0, min_sensitivity=min_sensitivity, name="x"
    )

    def judged(cut):
        called = predicted_classes(probabilities, positive=0, threshold=cut) == 0
        return recall_score(labels == 0, called), int((called & (labels == 1)).sum())

    sensitivity, alarms = judged(threshold)
    assert sensitivity == pytest.approx(reached)
    assert reached >= min_sensitivity
    others = [judged(cut) for cut in [*at, 0.0] if judged(cut)[0] >= min_sensitivity]
    assert alarms == min(other for _, other in others)
    assert reached == pytest.approx(max(share for share, other in others if other == alarms))
    assert threshold not in at or threshold == 0


def test_a_validation_split_without_the_class_is_refused():
    with pytest.raises(TrainerError, match="there are no covid images to choose a threshold on"):
        threshold_for_sensitivity(np.array([[0.5, 0.5]]), np.array([1]), positive=0, min_sensitivity=0.9, name="covid")


def test_below_the_threshold_the_most_probable_other_class_is_predicted():
    probabilities = np.array([[0.5, 0.2, 0.3], [0.7, 0.1, 0.2], [0.1, 0.2, 0.7]])

    assert predicted_classes(probabilities, positive=0, threshold=0.6).tolist() == [2, 0, 2]
    assert predicted_classes(probabilities, positive=0, threshold=None).tolist() == [0, 0, 2]


def test_a_calibration_is_read_back_as_it_was_written(tmp_path):
    chosen = Calibration(temperature=1.3, positive="covid", threshold=0.2, min_sensitivity=0.99)

    chosen.write(tmp_path, WEIGHTS, lease_in(tmp_path))

    assert Calibration.read(tmp_path, WEIGHTS) == chosen.model_copy(update={"model": WEIGHTS})
    assert chosen.threshold_for("covid") == 0.2
    assert chosen.threshold_for("normal") is None


def test_a_model_without_a_calibration_file_has_temperature_1_and_no_threshold(tmp_path):
    found = Calibration.read(tmp_path, WEIGHTS)

    assert (found.temperature, found.threshold) == (1.0, None)


def test_the_calibration_of_other_weights_is_refused(tmp_path):
    Calibration(threshold=0.2, positive="covid").write(tmp_path, WEIGHTS, lease_in(tmp_path))

    with pytest.raises(CheckpointError, match="belongs to other weights"):
        Calibration.read(tmp_path, "cd" * 32)


@pytest.mark.parametrize("content", ["{", json.dumps({"model": WEIGHTS, "temperature": 0}), "[]"])
def test_a_damaged_calibration_is_refused(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)

    with pytest.raises(
        CheckpointError, match="is damaged; remove it: the model then answers without temperature scaling"
    ):
        Calibration.read(tmp_path, WEIGHTS)
