"""Calibration slope and intercept: a logistic regression of the outcome on the logit of its predicted probability.

Slope 1 and intercept 0 are perfect (Cox 1958, Biometrika 45; Van Calster et al. 2019, BMC Medicine 17). A slope below 1
means probabilities that are too extreme. The intercept is that with the slope fixed at 1 (calibration in the large):
above 0, the event is more frequent than predicted.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t

from trainer.evaluation.bootstrap import Floats, Labels, Mask
from trainer.evaluation.intervals import TAIL, fewest_groups

STEPS = 50  # of Newton's method, which needs about ten
SEPARATED = 1e3  # a larger coefficient grows without bound: the probabilities separate the classes
NEAREST = 1e-15  # a probability of 0 or 1 has no logit
NO_SPREAD = 1e-6  # standard deviation of logits below which they differ by rounding alone


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A coefficient and its 95 % confidence interval; None where it is undefined."""

    value: float | None = None
    interval: tuple[float, float] | None = None


def calibrated_event(probabilities: Floats, labels: Labels, positive: int) -> tuple[Floats, Mask]:
    """Return the probability of an event and whether it happened, each (N,).

    Of two classes the event is the class `positive`; of more, that the predicted class is right.
    """
    if probabilities.shape[1] == 2:  # noqa: PLR2004
        return probabilities[:, positive], labels == positive
    return probabilities.max(axis=1), np.asarray(probabilities.argmax(axis=1) == labels)


def recalibration(scores: Floats, hits: Mask, units: Labels) -> dict[str, Estimate]:
    """Return `calibration_slope` and `calibration_intercept`.

    Both are undefined without events or without non-events; the slope too where the scores separate them
    or are all equal. An interval needs more groups with events, and without, than coefficients.

    Args:
        scores: (N,) predicted probabilities of an event.
        hits: (N,) whether it happened.
        units: (N,) group indices; the intervals are cluster-robust (sandwich estimator).
    """
    if not 0 < hits.sum() < len(hits):
        return {"calibration_slope": Estimate(), "calibration_intercept": Estimate()}
    x = logit(np.clip(scores, NEAREST, 1 - NEAREST))
    ones, centered = np.ones((len(x), 1)), x - x.mean()  # which leaves the slope, and keeps the two apart
    slope = _last_coefficient(np.column_stack([ones, centered]), np.zeros(len(x)), hits, units)
    return {
        "calibration_slope": slope if centered.std() > NO_SPREAD else Estimate(),
        "calibration_intercept": _last_coefficient(ones, x, hits, units),
    }


def _last_coefficient(design: Floats, offset: Floats, hits: Mask, units: Labels) -> Estimate:
    """Return the last coefficient of a logistic regression (N, K), with its cluster-robust interval."""
    beta = _fit(design, offset, hits)
    if beta is None:
        return Estimate()
    predicted = expit(design @ beta + offset)
    bread = np.linalg.pinv((design.T * (predicted * (1 - predicted))) @ design)
    scores = np.zeros((int(units.max()) + 1, design.shape[1]))
    np.add.at(scores, units, design * (hits - predicted)[:, None])
    groups = len(np.unique(units))
    if fewest_groups(hits, units) <= design.shape[1]:  # a few events say nothing about the variance of a coefficient
        return Estimate(value=float(beta[-1]))
    covariance = bread @ (scores.T @ scores) @ bread * groups / (groups - 1)
    reach = float(t.ppf(1 - TAIL, groups - 1) * np.sqrt(covariance[-1, -1]))
    value = float(beta[-1])
    return Estimate(value=value, interval=(value - reach, value + reach) if reach > 0 else None)


def _fit(design: Floats, offset: Floats, hits: Mask) -> Floats | None:
    """Return the coefficients of the highest likelihood (Newton's method, halved steps); None without a maximum."""
    beta = np.zeros(design.shape[1])
    for _ in range(STEPS):
        predicted = expit(design @ beta + offset)
        gradient = design.T @ (hits - predicted)
        step = np.linalg.pinv((design.T * (predicted * (1 - predicted))) @ design) @ gradient
        before = _log_likelihood(design @ beta + offset, hits)
        while _log_likelihood(design @ (beta + step) + offset, hits) < before and np.abs(step).max() > 1e-10:  # noqa: PLR2004
            step = step / 2
        beta = beta + step
        if np.abs(beta).max() > SEPARATED:
            return None
        if np.abs(step).max() < 1e-8:  # noqa: PLR2004
            return beta if design.shape[1] == 1 or _has_errors(design @ beta, hits) else None
    return None


def _log_likelihood(logits: Floats, hits: Mask) -> float:
    return float(-np.logaddexp(0, np.where(hits, -logits, logits)).sum())


def _has_errors(logits: Floats, hits: Mask) -> bool:
    """Whether the fit is not that of complete separation, whose likelihood has no maximum."""
    return bool(logits[hits].min() < logits[~hits].max())
