import numpy as np
import pytest

from trainer.evaluation.predictive_values import predictive_values

IS_POSITIVE = np.arange(200) < 100
UNITS = np.arange(200)


def predicted(true_positives, false_positives):
    """Decisions on 100 positives and 100 negatives."""
    return np.concatenate([np.arange(100) < true_positives, np.arange(100) < false_positives])


def test_predictive_values_follow_bayes_theorem():
    found = predictive_values(IS_POSITIVE, predicted(90, 20), UNITS, 0.02)

    assert found["ppv"] == pytest.approx(0.9 * 0.02 / (0.9 * 0.02 + 0.2 * 0.98))
    assert found["npv"] == pytest.approx(0.8 * 0.98 / (0.8 * 0.98 + 0.1 * 0.02))


def test_at_the_prevalence_of_the_split_they_are_its_precision_of_both_classes():
    found = predictive_values(IS_POSITIVE, predicted(90, 20), UNITS, 0.5)

    assert (found["ppv"], found["npv"]) == pytest.approx((90 / 110, 80 / 90))


def test_their_intervals_contain_them_and_have_a_width_even_without_an_error():
    for decisions in (predicted(90, 20), predicted(100, 0), predicted(0, 0)):
        found = predictive_values(IS_POSITIVE, decisions, UNITS, 0.1)

        for name in ("ppv", "npv"):
            low, high = found["intervals"][name]
            assert low < high
            assert found[name] is None or low <= found[name] <= high


def test_their_intervals_contain_the_true_value_in_95_percent_of_samples():
    random, true_ppv = np.random.default_rng(1), 0.9 * 0.1 / (0.9 * 0.1 + 0.05 * 0.9)
    inside = []
    for _ in range(200):
        decisions = np.concatenate([random.random(100) < 0.9, random.random(100) < 0.05])
        low, high = predictive_values(IS_POSITIVE, decisions, UNITS, 0.1)["intervals"]["ppv"]
        inside.append(low <= true_ppv <= high)

    assert np.mean(inside) >= 0.95


def test_they_are_undefined_without_negatives():
    found = predictive_values(np.ones(3, bool), np.ones(3, bool), np.arange(3), 0.1)

    assert (found["ppv"], found["npv"], found["intervals"]) == (None, None, {})
