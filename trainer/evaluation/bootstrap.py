"""95 % bootstrap intervals of the headline figures, by group where groups are known.

The figures themselves come from scikit-learn (`trainer.evaluation.metrics`). A thousand resamples of a hundred thousand
samples would take it minutes, because each one sorts anew; here the order is found once and every resample is a
row of weights. The tests hold these weighted figures against scikit-learn's `sample_weight`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]

RESAMPLES = 1000  # Efron & Tibshirani 1993, section 13.3: enough for 95 % percentiles
FEWEST_RESAMPLES = 200
WORK_LIMIT = 100_000_000  # samples x classes x resamples: a few seconds on one core
CHUNK_CELLS = 2_000_000  # weights in memory at once, 16 MB

Figures = dict[str, Floats]
Intervals = dict[str, list[float] | None]


def intervals(
    probabilities: Floats,  # (N, C)
    labels: Labels,  # (N,)
    predicted: Labels,  # (N,)
    *,
    positive: int,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Intervals:
    """Return the 2.5th and 97.5th percentile of each figure over resampled data.

    Whole groups are drawn with replacement where groups are given, because images of one patient are alike and
    drawing them one by one would make the interval too narrow. A figure that no resample defines is None.
    """
    units = _units(groups, len(labels))
    count = int(np.clip(WORK_LIMIT // probabilities.size, FEWEST_RESAMPLES, RESAMPLES))
    parts = [
        figures(weights, probabilities, labels, predicted, positive=positive)
        for weights in _weights(units, count, np.random.default_rng(seed))
    ]
    return {name: _percentiles(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def figures(weights: Floats, probabilities: Floats, labels: Labels, predicted: Labels, *, positive: int) -> Figures:
    """Return each figure under each row of `weights` (R, N), as arrays (R,); NaN where it is undefined."""
    classes = probabilities.shape[1]
    is_class = labels[:, None] == np.arange(classes)  # (N, C)
    is_positive, called_positive = labels == positive, predicted == positive
    right = predicted == labels
    areas = [_areas(weights, probabilities[:, c], is_class[:, c]) for c in _scored(classes, positive)]
    auroc, average_precision = np.stack(areas).transpose(1, 0, 2)  # each (C or 1, R)
    recalls = np.stack([_mean(weights, right, among=is_class[:, c]) for c in range(classes)])  # (C, R)
    surprise = -np.log(np.clip(probabilities, np.finfo(np.float64).eps, 1.0))[np.arange(len(labels)), labels]
    halves = 2 if classes == 2 else 1  # noqa: PLR2004 - scikit-learn halves the two-class Brier score
    return {
        "loss": _mean(weights, surprise),
        "accuracy": _mean(weights, right),
        "balanced_accuracy": _mean_of_defined(recalls),
        "sensitivity": _mean(weights, called_positive, among=is_positive),
        "specificity": _mean(weights, ~called_positive, among=~is_positive),
        "auroc": _mean_of_defined(auroc),
        "average_precision": _mean_of_defined(average_precision),
        "brier": _mean(weights, np.square(probabilities - is_class).sum(axis=1) / halves),
    }


def _scored(classes: int, positive: int) -> range:
    """With two classes the positive one's ranking says all; with more, each class is ranked against the rest."""
    return range(positive, positive + 1) if classes == 2 else range(classes)  # noqa: PLR2004


def _units(groups: Sequence[str] | None, count: int) -> Labels:
    """Return for each sample the number of what is drawn as one: its group, or itself where it has none."""
    if groups is None or not any(groups):
        return np.arange(count, dtype=np.int64)
    names = [group or f"\0{position}" for position, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _weights(units: Labels, count: int, random: np.random.Generator) -> Iterator[Floats]:
    """Yield `count` rows (R, N) in chunks: how often each sample stands in a resample."""
    drawn, rows = int(units.max()) + 1, max(1, CHUNK_CELLS // len(units))
    for start in range(0, count, rows):
        times = [np.bincount(random.integers(0, drawn, drawn), minlength=drawn) for _ in range(start, count)[:rows]]
        yield np.stack(times).astype(np.float64)[:, units]


def _mean(weights: Floats, values: Floats | Mask, *, among: Mask | None = None) -> Floats:
    """Return the weighted mean of `values` (N,) over the samples of `among`, as (R,)."""
    member = np.ones(weights.shape[1]) if among is None else among.astype(np.float64)
    total = weights @ member
    return np.divide(weights @ (values * member), total, out=np.full_like(total, np.nan), where=total > 0)


def _mean_of_defined(values: Floats) -> Floats:
    """Return the mean over the first axis of the values that are numbers."""
    defined = ~np.isnan(values)
    total = defined.sum(axis=0)
    summed: Floats = np.where(defined, values, 0.0).sum(axis=0)
    mean: Floats = np.divide(summed, total, out=np.full_like(summed, np.nan), where=total > 0)
    return mean


def _areas(weights: Floats, scores: Floats, hits: Mask) -> tuple[Floats, Floats]:
    """Return the area under the ROC curve (trapezoids) and the average precision (steps), each (R,)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # equal scores are one point of the curve
    ordered = weights[:, order]
    true = np.cumsum(ordered * hits[order], axis=1)[:, ends]  # (R, K)
    false = np.cumsum(ordered, axis=1)[:, ends] - true
    gained, lost = np.diff(true, prepend=0.0), np.diff(false, prepend=0.0)
    undefined = np.full(len(weights), np.nan)
    pairs = true[:, -1] * false[:, -1]
    auroc = np.divide((lost * (true - gained / 2)).sum(axis=1), pairs, out=undefined.copy(), where=pairs > 0)
    precision = true / np.maximum(true + false, 1.0)
    steps = (gained * precision).sum(axis=1)
    return auroc, np.divide(steps, true[:, -1], out=undefined, where=true[:, -1] > 0)


def _percentiles(values: Floats) -> list[float] | None:
    defined = values[~np.isnan(values)]
    return [float(value) for value in np.percentile(defined, (2.5, 97.5))] if len(defined) else None
