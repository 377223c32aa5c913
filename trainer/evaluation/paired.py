"""Differences between two models on the same images: intervals and tests that use the pairing, and the groups.

- Proportions (accuracy, sensitivity, specificity): the interval of Tango (Stat Med 17, 1998) and McNemar's test. With
  groups, the interval takes the effective number of images, and the test compares sums over groups: exact by the
  distribution of random signs (without groups, that is the exact McNemar test) where fewer than 25 groups differ, else
  by the chi-squared distribution (Obuchowski, Stat Med 17, 1998).
- Balanced accuracy: the intervals of the recalls combined by MOVER (Zou & Donner 2008), with their correlation where a
  group has images of several classes; no test.
- AUROC: DeLong et al. 1988 on the plain scale, normal; with groups Obuchowski 1997 with Student's t (Satterthwaite).

An interval is this one or the percentiles of the paired bootstrap by group, whichever is wider.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm, t

from trainer.evaluation.bootstrap import (
    Floats,
    Labels,
    Mask,
    ranked_classes,
    resample_count,
    resample_weights,
    weighted_metrics,
)
from trainer.evaluation.intervals import (
    FEWEST_GROUPS,
    TAIL,
    Interval,
    auroc_influence,
    auroc_interval,
    effective_sample_size,
    fewest_groups,
    percentile_interval,
    rate_correlation,
    wider,
)

SEED = 0  # of the bootstrap
EXACT_BELOW = 25  # differing images or groups; from there on the chi-squared distribution is close enough
FIGURES = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc")
NEAR = 1e-9  # starts the search for an end of an interval beside the estimate


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """What one model gave out for the shared images.

    Attributes:
        probabilities: (N, C) float64, after temperature scaling, as the AUROC of `evaluate` uses them.
        predicted: (N,) int64, the predicted classes.
    """

    probabilities: Floats
    predicted: Labels


@dataclass(frozen=True, kw_only=True)
class PairedFigure:
    """One metric of two models on the same images; None where it is undefined.

    Attributes:
        name: One of `FIGURES`.
        first: Value of the first model.
        second: Value of the second model.
        interval: 95 % confidence interval of `difference`.
        p: Two-sided p value of "there is no difference".
        test: The test that gave `p`.
    """

    name: str
    first: float | None
    second: float | None
    interval: Interval | None = None
    p: float | None = None
    test: str | None = None

    @property
    def difference(self) -> float | None:
        """Value of the second model minus that of the first."""
        return None if self.first is None or self.second is None else self.second - self.first


def paired_figures(
    first: ModelScores, second: ModelScores, labels: Labels, units: Labels, *, positive: int
) -> tuple[PairedFigure, ...]:
    """Return the figures of two models in the order of `FIGURES`.

    Args:
        first: The reference.
        second: The model that is compared with it.
        labels: (N,) true classes of the shared images.
        units: (N,) index of the group of each image, from 0.
        positive: Index of the class that sensitivity and specificity refer to.
    """
    hits = labels == positive
    right = first.predicted == labels, second.predicted == labels
    called = (first.predicted == positive) == hits, (second.predicted == positive) == hits
    resampled = _paired_bootstrap(first, second, labels, units, positive=positive)
    return (
        _proportion("accuracy", right, np.ones_like(hits), units, resampled),
        _balanced_accuracy(*right, labels, units, resampled["balanced_accuracy"]),
        _proportion("sensitivity", called, hits, units, resampled),
        _proportion("specificity", called, ~hits, units, resampled),
        _auroc(first, second, labels, units, positive=positive, resampled=resampled["auroc"]),
    )


def paired_auroc(first: Floats, second: Floats, labels: Labels, units: Labels, *, positive: int) -> PairedFigure:
    """Return the AUROC of two models' probabilities (N, C) on the same images, and their difference, without bootstrap.

    `labels` (N,) are the classes, `units` (N,) the index of each image's group, from 0.
    """
    reference, candidate = (ModelScores(probabilities=one, predicted=labels) for one in (first, second))
    return _auroc(reference, candidate, labels, units, positive=positive, resampled=np.empty(0))


def difference_interval(differences: Floats, units: Labels) -> Interval | None:
    """Return the interval of the mean of `differences` (n,), each -1, 0 or 1, between paired proportions.

    Tango's score interval; with groups, at the effective number of pairs. None if n is 0.
    """
    if not len(differences):
        return None
    count = effective_sample_size(differences, units, variance=float(differences.var()))
    return tango_interval(float((differences > 0).mean()) * count, float((differences < 0).mean()) * count, count)


def tango_interval(gained: float, lost: float, count: float) -> Interval:
    """Return the score interval of (gained - lost) / count for `count` pairs (Tango 1998, eq. 5 to 8).

    Its ends are the differences that the score test does not reject. The numbers may be fractions.
    """
    estimate, reach = (gained - lost) / count, float(norm.ppf(1 - TAIL))

    def excess(difference: float, sign: int) -> float:
        """Return how far the score test is from its critical value at an assumed true difference."""
        linear = -gained - lost + (2 * count - gained + lost) * difference
        constant = -lost * difference * (1 - difference)
        root = np.sqrt(max(0.0, linear**2 - 8 * count * constant))
        share = (root - linear) / (4 * count)  # of pairs that the second model loses, by maximum likelihood
        variance = max(0.0, count * (2 * share + difference * (1 - difference)))
        return float(sign * (gained - lost - count * difference) - reach * np.sqrt(variance))

    low = -1.0 if estimate - NEAR <= -1 else float(brentq(excess, -1.0, estimate - NEAR, args=(1,)))
    high = 1.0 if estimate + NEAR >= 1 else float(brentq(excess, estimate + NEAR, 1.0, args=(-1,)))
    return low, high


def mcnemar_test(differences: Floats, units: Labels) -> tuple[float, str]:
    """Return the two-sided p value of "no difference" between paired proportions, and the name of the test.

    `differences` (n,) are -1, 0 or 1, `units` (n,) the groups.
    """
    sums = np.bincount(units, weights=differences)
    sums = sums[sums != 0].astype(np.int64)
    grouped = len(np.unique(units)) < len(units)
    name = "McNemar by group" if grouped else "McNemar"
    if len(sums) < EXACT_BELOW:
        return _random_sign_p(sums), f"{name}, exact"
    return float(chi2.sf(sums.sum() ** 2 / np.square(sums).sum(), df=1)), name


def _random_sign_p(sums: Labels) -> float:
    """Return the probability that `sums` with random signs add up to at least the observed absolute total."""
    total = int(np.abs(sums).sum())
    chance = np.zeros(2 * total + 1)  # of each total from -total to total
    chance[total] = 1.0
    for size in np.abs(sums):
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2  # ends stay 0 until the last sum
    possible = np.arange(-total, total + 1)
    return min(1.0, float(chance[np.abs(possible) >= abs(int(sums.sum()))].sum()))


def auroc_test(
    first: Sequence[tuple[Floats, Mask]], second: Sequence[tuple[Floats, Mask]], labels: Labels, units: Labels
) -> tuple[float, float, Interval | None, float | None, str]:
    """Return both AUROCs, the interval of their difference, its p value, and the name of the test.

    `first` and `second` hold scores and positives, each (N,), of every class that is averaged; `labels` and `units` are
    the class and the group of each image. Interval and p value are None where the standard error is 0 and the AUROCs
    differ.
    """
    areas, influences = zip(*(auroc_influence(scored, units) for scored in (first, second)), strict=True)
    difference = areas[1] - areas[0]
    squares = np.square(influences[1] - influences[0])
    error = float(np.sqrt(squares.sum()))
    grouped = len(np.unique(units)) < len(units)
    name, spread = ("DeLong by group", t(_freedom(squares, labels, units))) if grouped else ("DeLong", norm())
    if not error > 0:
        return (*areas, None, 1.0 if difference == 0 else None, name)
    reach = float(spread.ppf(1 - TAIL)) * error
    interval = max(-1.0, difference - reach), min(1.0, difference + reach)
    return (*areas, interval, float(2 * spread.sf(abs(difference) / error)), name)


def _freedom(squares: Floats, labels: Labels, units: Labels) -> float:
    """Return the degrees of freedom of a variance that is the sum of `squares` (groups,) (Satterthwaite 1946).

    The classes are the strata; a group counts in the class of its first image. Groups of a class count as their
    effective number.
    """
    owner, sizes = labels[np.unique(units, return_index=True)[1]], np.bincount(units)
    parts = np.bincount(owner, weights=squares)
    groups = np.bincount(owner, weights=sizes) ** 2 / np.maximum(np.bincount(owner, weights=sizes**2), 1)
    spread = float((np.square(parts) / np.maximum(groups - 1, 1)).sum())
    return float(parts.sum() ** 2 / spread) if spread > 0 else 1.0


def _proportion(
    name: str, right: tuple[Mask, Mask], members: Mask, units: Labels, resampled: dict[str, Floats]
) -> PairedFigure:
    """Return the figure of a proportion among `members`; `right` says where each model is right."""
    if not members.any():
        return PairedFigure(name=name, first=None, second=None)
    first, second = (one[members].astype(np.float64) for one in right)
    p, test = mcnemar_test(second - first, units[members])
    return PairedFigure(
        name=name,
        first=float(first.mean()),
        second=float(second.mean()),
        interval=wider(difference_interval(second - first, units[members]), percentile_interval(resampled[name])),
        p=p,
        test=test,
    )


def _balanced_accuracy(first: Mask, second: Mask, labels: Labels, units: Labels, resampled: Floats) -> PairedFigure:
    members = [labels == c for c in np.unique(labels)]
    differences = [second[mask].astype(np.float64) - first[mask] for mask in members]
    intervals = [difference_interval(d, units[mask]) for d, mask in zip(differences, members, strict=True)]
    means = [float(d.mean()) for d in differences]
    mean = float(np.mean(means))
    reaches = np.array([(m - i[0], i[1] - m) for m, i in zip(means, intervals, strict=True) if i is not None])
    correlation = rate_correlation([(d, units[mask]) for d, mask in zip(differences, members, strict=True)])
    below, above = (float(np.sqrt(reach @ correlation @ reach)) / len(means) for reach in reaches.T)
    return PairedFigure(
        name="balanced_accuracy",
        first=float(np.mean([first[mask].mean() for mask in members])),
        second=float(np.mean([second[mask].mean() for mask in members])),
        interval=wider((max(-1.0, mean - below), min(1.0, mean + above)), percentile_interval(resampled)),
    )


def _auroc(
    first: ModelScores, second: ModelScores, labels: Labels, units: Labels, *, positive: int, resampled: Floats
) -> PairedFigure:
    classes = first.probabilities.shape[1]
    ranked = [c for c in ranked_classes(classes, positive) if 0 < (labels == c).sum() < len(labels)]
    if not ranked:
        return PairedFigure(name="auroc", first=None, second=None)
    scored = [[(model.probabilities[:, c], labels == c) for c in ranked] for model in (first, second)]
    area_first, area_second, interval, p, test = auroc_test(scored[0], scored[1], labels, units)
    if any(fewest_groups(hits, units) < FEWEST_GROUPS for _, hits in scored[0]):  # one group has no variance
        return PairedFigure(name="auroc", first=area_first, second=area_second)
    interval = wider(interval, percentile_interval(resampled)) or _exact_interval(scored, units)
    return PairedFigure(name="auroc", first=area_first, second=area_second, interval=interval, p=p, test=test)


def _exact_interval(scored: Sequence[Sequence[tuple[Floats, Mask]]], units: Labels) -> Interval | None:
    """Return the interval where each model ranks all images right, or all wrong: from the exact bounds of both."""
    first, second = (auroc_interval(one, units) for one in scored)
    if first is None or second is None or any(low > 0 and high < 1 for low, high in (first, second)):
        return None
    return second[0] - first[1], second[1] - first[0]


def _paired_bootstrap(
    first: ModelScores, second: ModelScores, labels: Labels, units: Labels, *, positive: int
) -> dict[str, Floats]:
    """Return the difference of each figure in each resample of whole groups, (R,); NaN where it is undefined."""
    count = resample_count(first.probabilities.size)
    parts = [
        _weighted_differences(weights, first, second, labels, positive=positive)
        for weights in resample_weights(units, count, np.random.default_rng(SEED))
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIGURES}


def _weighted_differences(
    weights: Floats, first: ModelScores, second: ModelScores, labels: Labels, *, positive: int
) -> dict[str, Floats]:
    hits = labels == positive
    right = (second.predicted == labels).astype(np.float64) - (first.predicted == labels)
    called = (second.predicted == positive).astype(np.float64) - (first.predicted == positive)
    recalls = [_weighted_mean(weights, right, labels == c) for c in np.unique(labels)]
    areas = [weighted_metrics(weights, m.probabilities, labels, positive=positive)["auroc"] for m in (first, second)]
    return {
        "accuracy": _weighted_mean(weights, right, np.ones_like(hits)),
        "balanced_accuracy": np.mean(recalls, axis=0),
        "sensitivity": _weighted_mean(weights, called, hits),
        "specificity": _weighted_mean(weights, -called, ~hits),
        "auroc": areas[1] - areas[0],
    }


def _weighted_mean(weights: Floats, values: Floats, members: Mask) -> Floats:
    total = weights[:, members].sum(axis=1)
    undefined = np.full(len(weights), np.nan)
    mean: Floats = np.divide(weights[:, members] @ values[members], total, out=undefined, where=total > 0)
    return mean
