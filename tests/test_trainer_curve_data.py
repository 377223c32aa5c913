import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from trainer.report.curve_data import (
    net_benefit,
    precision_recall_band,
    precision_recall_steps,
    reliability_bins,
    roc_band,
)


@pytest.fixture
def scored():
    random = np.random.default_rng(0)
    hits = random.random(200) < 0.4
    return np.clip(random.normal(0.35 + 0.3 * hits, 0.15), 0.01, 0.99), hits


def test_the_bins_of_a_reliability_diagram_hold_every_image_with_an_interval_of_some_width(scored):
    scores, hits = scored

    found = reliability_bins(scores, hits, np.arange(200))

    assert sum(one.count for one in found) == 200
    for one in found:
        inside = (scores > one.low) & (scores <= one.high)
        assert (one.count, one.observed) == (inside.sum(), pytest.approx(hits[inside].mean()))
        assert one.interval[0] <= one.observed <= one.interval[1]
        assert one.interval[0] < one.interval[1]


def test_the_band_of_a_roc_curve_contains_the_curve_also_without_an_error():
    scores, hits = np.arange(40) / 40, np.arange(40) >= 20

    outline = roc_band(scores, hits, np.arange(40))

    assert max(x for x, y in outline if 0.5 < y < 0.9) > 0.1  # 20 negatives without an error do not show a rate of 0
    assert (0.0, 1.0) in outline


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_the_band_of_a_precision_recall_curve_contains_every_step_of_the_curve(share):
    random = np.random.default_rng(0)
    hits = np.arange(50) < 50 * share
    scores = random.normal(size=50) + 2 * hits

    outline = np.array(precision_recall_band(scores, hits, np.arange(50)))

    for recall, precision in zip(*precision_recall_steps(hits, scores), strict=True):
        at_recall = _heights(outline, recall)
        assert min(at_recall) <= precision <= max(at_recall)


def test_the_band_of_equal_scores_is_the_rectangle_of_both_exact_intervals():
    hits = np.arange(20) < 8
    precision = binomtest(8, 20).proportion_ci(confidence_level=0.975, method="exact")

    outline = np.array(precision_recall_band(np.full(20, 0.4), hits, np.arange(20)))

    assert (outline[:, 0].min(), outline[:, 0].max()) == (0, 1)
    assert (outline[:, 1].min(), outline[:, 1].max()) == (pytest.approx(precision.low), pytest.approx(precision.high))


def _heights(outline, x):
    """Return the heights at which the sides of an outline, the closing one among them, cross or touch the given x."""
    found = []
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if min(x0, x1) <= x <= max(x0, x1):
            found += [y0, y1] if x0 == x1 else [y0 + (x - x0) / (x1 - x0) * (y1 - y0)]
    return found


def test_net_benefit_counts_true_positives_minus_weighted_false_positives(scored):
    scores, hits = scored
    (_, false_positives), (_, true_positives) = sk.confusion_matrix(hits, scores >= 0.3)

    model, everyone = net_benefit(scores, hits, np.array([0.3]), float(hits.mean()))

    assert model[0] == pytest.approx(true_positives / 200 - false_positives / 200 * 0.3 / 0.7)
    assert everyone[0] == pytest.approx(hits.mean() - (1 - hits.mean()) * 0.3 / 0.7)


def test_the_area_below_the_steps_of_precision_and_recall_is_the_average_precision():
    random = np.random.default_rng(0)
    hits = random.random(60) < 0.3
    scores = np.round(random.normal(size=60) + hits, 1)  # some scores tie

    recall, precision = precision_recall_steps(hits, scores)

    assert np.trapezoid(precision, recall) == pytest.approx(sk.average_precision_score(hits, scores))


def test_equal_scores_have_the_precision_of_chance_at_every_recall():
    recall, precision = precision_recall_steps(np.arange(10) < 3, np.zeros(10))

    assert (recall.tolist(), precision.tolist()) == ([0, 1], [0.3, 0.3])
