"""The metrics that rank trials, of many resamples at once: those of `epoch_metrics` with a weight for each image."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logsumexp, softmax

from trainer.evaluation.bootstrap import Floats, Labels, Mask, mean_of_defined, ranked_classes, weighted_areas
from trainer.specs.metric import Metric


def weighted_values(weights: Floats, logits: Floats, labels: Labels, metric: Metric) -> Floats:
    """Return a metric under each row of `weights` (R, N), as (R,); NaN where it is undefined.

    Args:
        weights: How often a resample contains each image.
        logits: (N, C).
        labels: (N,) classes, or (N, C) targets: 1 present, 0 absent, -1 unknown.
        metric: As `epoch_metrics` defines it.
    """
    if not np.isfinite(logits).all():
        return np.full(len(weights), np.nan)
    return (_of_classes if labels.ndim == 1 else _of_labels)(weights, logits, labels, metric)


def _of_classes(weights: Floats, logits: Floats, labels: Labels, metric: Metric) -> Floats:
    count, every = logits.shape[1], np.ones(len(labels))
    if metric == "loss":
        return _ratio(weights, logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels], every)
    if metric == "auroc":
        scores = softmax(logits, axis=1)
        areas = [weighted_areas(weights, scores[:, c], labels == c)[0] for c in ranked_classes(count, 0)]
        return mean_of_defined(np.stack(areas))
    is_right = logits.argmax(axis=1) == labels
    if metric == "accuracy":
        return _ratio(weights, is_right, every)
    recalls = [_ratio(weights, is_right & (labels == c), labels == c) for c in range(count)]
    return mean_of_defined(np.stack(recalls))


def _of_labels(weights: Floats, logits: Floats, targets: Labels, metric: Metric) -> Floats:
    known, hits, found = targets >= 0, targets == 1, logits >= 0
    if metric == "loss":
        losses = np.logaddexp(0, np.where(hits, -logits, logits))
        return _ratio(weights, np.where(known, losses, 0).sum(axis=1), known.sum(axis=1))
    if metric == "accuracy":
        return _ratio(weights, ((hits == found) & known).sum(axis=1), known.sum(axis=1))
    value = _label_area if metric == "auroc" else _label_balance
    of_labels = [value(weights[:, k], logits[k, c], hits[k, c]) for c, k in enumerate(known.T) if k.any()]
    return mean_of_defined(np.stack(of_labels)) if of_labels else np.full(len(weights), np.nan)


def _label_area(weights: Floats, logits: Floats, hits: Mask) -> Floats:
    return weighted_areas(weights, expit(logits), hits)[0]


def _label_balance(weights: Floats, logits: Floats, hits: Mask) -> Floats:
    """Return the mean of sensitivity and specificity, NaN where one is undefined."""
    found = logits >= 0
    balance: Floats = (_ratio(weights, found & hits, hits) + _ratio(weights, ~found & ~hits, ~hits)) / 2
    return balance


def _ratio(weights: Floats, counted: ArrayLike, counts: ArrayLike) -> Floats:
    """Return the weighted sum of `counted` (N,) by that of `counts` (N,), as (R,); NaN without any."""
    total = weights @ np.asarray(counts, dtype=np.float64)
    summed = weights @ np.asarray(counted, dtype=np.float64)
    ratio: Floats = np.divide(summed, total, out=np.full(len(weights), np.nan), where=total > 0)
    return ratio
