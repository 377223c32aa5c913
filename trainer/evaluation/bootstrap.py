"""Bootstrap of AUROC, average precision, loss and Brier score; it resamples whole groups where groups are known.

scikit-learn would sort the scores again for each of 1,000 resamples: minutes for 100,000 samples. Here scores are
sorted once, and a resample is a row of weights. The tests compare the weighted metrics with scikit-learn's
`sample_weight`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]

RESAMPLES = 1000  # Efron & Tibshirani 1993, section 13.3: enough for 95 % percentiles
FEWEST_RESAMPLES = 200
WORK_LIMIT = 100_000_000  # samples x classes x resamples: a few seconds on one core
CHUNK_CELLS = 2_000_000  # weights in memory at once, 16 MB

MetricValues = dict[str, Floats]


def bootstrap_metrics(
    probabilities: Floats,  # (N, C)
    labels: Labels,  # (N,)
    units: Labels,  # (N,)
    *,
    positive: int,
    seed: int,
    resamples: int = RESAMPLES,
) -> MetricValues:
    """Return each metric of each resample, (R,); NaN where it is undefined.

    `units` are group indices. Groups are drawn with replacement, because images of one patient are alike: drawing
    single images would underestimate the variance. `resamples` are fewer for large splits.
    """
    count = resample_count(probabilities.size, resamples)
    parts = [
        weighted_metrics(weights, probabilities, labels, positive=positive)
        for weights in resample_weights(units, count, np.random.default_rng(seed))
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def resample_count(size: int, most: int = RESAMPLES) -> int:
    """Return the number of resamples for that many probabilities: fewer for large splits."""
    return int(np.clip(WORK_LIMIT // size, FEWEST_RESAMPLES, most))


def weighted_metrics(weights: Floats, probabilities: Floats, labels: Labels, *, positive: int) -> MetricValues:
    """Return each metric under each row of `weights` (R, N), as arrays (R,); NaN where it is undefined."""
    classes = probabilities.shape[1]
    is_class = labels[:, None] == np.arange(classes)  # (N, C)
    areas = [weighted_areas(weights, probabilities[:, c], is_class[:, c]) for c in ranked_classes(classes, positive)]
    auroc, average_precision = np.stack(areas).transpose(1, 0, 2)  # each (C or 1, R)
    losses = -np.log(np.clip(probabilities, np.finfo(np.float64).eps, 1.0))[np.arange(len(labels)), labels]
    return {
        "loss": _mean(weights, losses),
        "auroc": mean_of_defined(auroc),
        "average_precision": mean_of_defined(average_precision),
        "brier": _mean(weights, np.square(probabilities - is_class).sum(axis=1) / (2 / highest_brier(classes))),
    }


def highest_brier(classes: int) -> float:
    """Return the Brier score of a certain and always wrong model; scikit-learn halves that of two classes."""
    return 1.0 if classes == 2 else 2.0  # noqa: PLR2004


def ranked_classes(classes: int, positive: int) -> range:
    """Return the classes whose AUROC is averaged: for two classes only the positive one, else all, one vs rest."""
    return range(positive, positive + 1) if classes == 2 else range(classes)  # noqa: PLR2004


def resample_weights(
    units: Labels, count: int, random: np.random.Generator, *, cells: int | None = None
) -> Iterator[Floats]:
    """Yield `count` rows (R, N) in chunks: how often a resample contains each sample.

    `cells` is the number of values that the caller computes for each row, which bounds the rows of a chunk.
    """
    drawn, rows = int(units.max()) + 1, max(1, CHUNK_CELLS // (cells or len(units)))
    for start in range(0, count, rows):
        times = [np.bincount(random.integers(0, drawn, drawn), minlength=drawn) for _ in range(start, count)[:rows]]
        yield np.stack(times).astype(np.float64)[:, units]


def _mean(weights: Floats, values: Floats) -> Floats:
    """Return the weighted mean of `values` (N,) under each row of weights, as (R,); NaN without samples."""
    total = weights.sum(axis=1)
    mean: Floats = np.divide(weights @ values, total, out=np.full(len(weights), np.nan), where=total > 0)
    return mean


def mean_of_defined(values: Floats) -> Floats:
    """Return the mean over the first axis, without NaN."""
    defined = ~np.isnan(values)
    total = defined.sum(axis=0)
    summed: Floats = np.where(defined, values, 0.0).sum(axis=0)
    mean: Floats = np.divide(summed, total, out=np.full_like(summed, np.nan), where=total > 0)
    return mean


def weighted_areas(weights: Floats, scores: Floats, hits: Mask) -> tuple[Floats, Floats]:
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
