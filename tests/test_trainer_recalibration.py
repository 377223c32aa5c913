import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit

from trainer.evaluation.recalibration import Estimate, calibrated_event, recalibration


@pytest.fixture
def outcomes():
    """Probabilities that are too extreme and too low, what happened, and groups of about three."""
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=300)
    hits = random.random(300) < expit(0.6 * logits + 0.4)
    units = np.unique(random.integers(0, 100, 300), return_inverse=True)[1]
    return expit(logits), hits, units


def test_slope_and_intercept_are_those_of_statsmodels_with_errors_by_group(outcomes):
    scores, hits, units = outcomes
    by_group = {"cov_type": "cluster", "cov_kwds": {"groups": units}}
    family = sm.families.Binomial()
    slope = sm.GLM(hits.astype(float), sm.add_constant(logit(scores)), family=family).fit(**by_group, use_t=True)
    intercept = sm.GLM(hits.astype(float), np.ones((300, 1)), offset=logit(scores), family=family).fit(
        **by_group, use_t=True
    )

    found = recalibration(scores, hits, units)

    assert found["calibration_slope"].value == pytest.approx(slope.params[1], abs=1e-6)
    assert found["calibration_intercept"].value == pytest.approx(intercept.params[0], abs=1e-6)
    assert found["calibration_intercept"].interval == pytest.approx(intercept.conf_int()[0], rel=1e-3)
    assert found["calibration_slope"].interval == pytest.approx(slope.conf_int()[1], rel=5e-3)


def test_a_slope_is_undefined_where_the_probabilities_separate_the_outcomes():
    found = recalibration(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]), np.arange(4))

    assert found["calibration_slope"] == Estimate()
    assert found["calibration_intercept"].value == pytest.approx(0, abs=1e-9)


def test_both_are_undefined_without_events():
    found = recalibration(np.array([0.1, 0.2]), np.array([False, False]), np.arange(2))

    assert set(found.values()) == {Estimate()}


def test_of_more_than_two_classes_the_event_is_a_correct_prediction():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])

    scores, hits = calibrated_event(probabilities, np.array([0, 1]), positive=0)

    assert scores.tolist() == [0.6, 0.5]
    assert hits.tolist() == [True, False]


def test_two_events_give_a_slope_without_an_interval(outcomes):
    scores, _, _ = outcomes
    hits = np.isin(np.arange(300), [np.argmax(scores), np.argmin(scores)])

    found = recalibration(scores, hits, np.arange(300))

    assert found["calibration_slope"].value is not None
    assert found["calibration_slope"].interval is None
    assert found["calibration_intercept"].interval is not None


def test_scores_that_differ_by_rounding_alone_have_no_slope():
    scores, hits = 0.53 + 1e-9 * (np.arange(50) % 3), np.arange(50) % 5 < 2

    found = recalibration(scores, hits, np.arange(50))

    assert found["calibration_slope"] == Estimate()
    assert found["calibration_intercept"].interval is not None
