"""Metrics by subgroup: the images that have one value in a kept column of the label table, such as one sex or site.

A row has the same metrics, decisions and intervals as the whole split. A metric without an interval is None: too few
images say nothing about it. The intervals are not corrected for the number of subgroups.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from sklearn import metrics as sk

from data_shards.columns import MOST_VALUES, KeptColumn
from trainer.evaluation.bootstrap import Floats, Labels, Mask, bootstrap_metrics
from trainer.evaluation.intervals import (
    NO_RESAMPLES,
    Interval,
    auroc_interval,
    independent_pairs,
    interval_json,
    proportion_interval,
)
from trainer.evaluation.metric_text import is_binary

FEWEST_PAIRS = 5  # independent positives and negatives; DeLong's variance of fewer says nothing
LARGE = 5000  # images from which on the bootstrap does not widen DeLong's interval, and would take minutes

Figure: TypeAlias = tuple[float | None, Interval | None]  # a value and its 95 % interval


@dataclass(frozen=True, kw_only=True)
class DecidedImages:
    """The images of a split with truth, decision and score.

    Attributes:
        labels: (N,) true classes, or (N, C) targets of several labels: 1 present, 0 absent, -1 unknown.
        decisions: (N,) predicted classes, or (N, C) of 0 and 1.
        probabilities: (N, C) after temperature scaling.
        units: (N,) group indices.
        classes: Names of the C classes or labels.
        positive: The stated positive class; None if nobody stated one.
        seed: Random seed of the bootstrap.
    """

    labels: Labels
    decisions: Labels
    probabilities: Floats
    units: Labels
    classes: tuple[str, ...]
    positive: str | None
    seed: int

    def selected(self, rows: Labels) -> "DecidedImages":
        """Return the images in these rows."""
        arrays = {name: getattr(self, name)[rows] for name in ("labels", "decisions", "probabilities", "units")}
        return replace(self, **arrays)


def subgroup_rows(
    images: DecidedImages, columns: Sequence[KeptColumn], values: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return a row for each value of each column, and for each label if an image has several, as JSON values.

    `value` is None for the images without one. Of a column with more than `MOST_VALUES` values, as additions to a data
    set may bring, the rows are about those with most images; `left_out` of each row of the column counts the images of
    the others.

    Args:
        images: The images of the split.
        columns: The kept columns.
        values: The value of each image in each column, (N,) each; "" where there is none.
    """
    return [row for column in columns for row in _rows_of_column(images, column, values[column.name])]


def _rows_of_column(images: DecidedImages, column: KeptColumn, values: Sequence[str]) -> list[dict[str, Any]]:
    counts, of_image = Counter(values), np.array(values, dtype=object)
    shown = [value for value, _ in counts.most_common(MOST_VALUES)]
    others = len(values) - sum(counts[value] for value in shown)
    left_out = {"left_out": others} if others else {}
    return [
        {"column": column.name, "value": value or None, **row, **left_out}
        for value in column.in_order(shown)
        for row in _rows_of_value(images.selected(np.flatnonzero(of_image == value)))
    ]


def _rows_of_value(images: DecidedImages) -> list[dict[str, Any]]:
    """Return the row of the images of one value; with several labels, one for each, on the images where it is known."""
    labels, decisions, scores = images.labels, images.decisions, images.probabilities
    if labels.ndim > 1:
        known = [np.flatnonzero(labels[:, c] >= 0) for c in range(len(images.classes))]
        return [
            {
                "label": name,
                **_row(
                    images.units[at],
                    _event_figures(
                        labels[at, c] == 1, decisions[at, c] == 1, scores[at, c], images.units[at], images.seed
                    ),
                    positives=int((labels[at, c] == 1).sum()),
                ),
            }
            for c, (name, at) in enumerate(zip(images.classes, known, strict=True))
        ]
    accuracy = {"accuracy": _rate(labels == decisions, images.units)}
    if images.positive is None and not is_binary(images.classes):
        return [_row(images.units, accuracy | {"auroc": _mean_auroc(images)}, positives=None)]
    c = 0 if images.positive is None else images.classes.index(images.positive)
    figures = _event_figures(labels == c, decisions == c, scores[:, c], images.units, images.seed)
    return [_row(images.units, accuracy | figures, positives=int((labels == c).sum()))]


def _row(units: Labels, figures: Mapping[str, Figure], *, positives: int | None) -> dict[str, Any]:
    return {
        "n": len(units),
        "groups": len(np.unique(units)),
        "positives": positives,
        **{name: value for name, (value, _) in figures.items()},
        "intervals": {name: interval_json(interval) for name, (_, interval) in figures.items()},
    }


def _event_figures(hits: Mask, predicted: Mask, scores: Floats, units: Labels, seed: int) -> dict[str, Figure]:
    """Return sensitivity, specificity and AUROC of one class or label against the rest."""
    return {
        "sensitivity": _rate(predicted[hits], units[hits]),
        "specificity": _rate(~predicted[~hits], units[~hits]),
        "auroc": _auroc([(scores, hits)], np.column_stack([1 - scores, scores]), hits.astype(np.int64), units, seed),
    }


def _rate(successes: Mask, units: Labels) -> Figure:
    interval = proportion_interval(successes, units)
    return (None, None) if interval is None else (float(successes.mean()), interval)


def _mean_auroc(images: DecidedImages) -> Figure:
    """Return the mean AUROC of each class against the rest; of fewer classes it would be about other classes."""
    scored = [(images.probabilities[:, c], images.labels == c) for c in range(len(images.classes))]
    return _auroc(scored, images.probabilities, images.labels, images.units, images.seed)


def _auroc(
    scored: Sequence[tuple[Floats, Mask]], probabilities: Floats, labels: Labels, units: Labels, seed: int
) -> Figure:
    if not all(0 < hits.sum() < len(hits) and independent_pairs(hits, units) >= FEWEST_PAIRS for _, hits in scored):
        return None, None
    own = np.unique(units, return_inverse=True)[1]
    resampled = (
        NO_RESAMPLES
        if len(labels) > LARGE
        else bootstrap_metrics(probabilities, labels, own, positive=probabilities.shape[1] - 1, seed=seed)["auroc"]
    )
    interval = auroc_interval(scored, own, resampled)
    value = float(np.mean([sk.roc_auc_score(hits, scores) for scores, hits in scored]))
    return (None, None) if interval is None else (value, interval)
