"""The table of metrics by class: each class against the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn import metrics as sk

from trainer.evaluation.intervals import Interval, auroc_interval
from trainer.evaluation.metric_text import is_binary
from trainer.report.evaluation_charts import EvaluatedImages


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value and its 95 % confidence interval, None where they are undefined."""

    value: float | None
    interval: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """The metrics of one class against the rest."""

    name: str
    images: int
    recall: Figure
    precision: Figure
    f1: float | None
    auroc: Figure
    average_precision: float | None


def class_rows(images: EvaluatedImages) -> list[ClassRow]:
    """Return a row for each class; of more than two classes the one with the lowest recall first."""
    rows = [_row(images, c, name) for c, name in enumerate(images.classes)]
    if is_binary(images.classes):
        return rows
    return sorted(rows, key=lambda row: 2.0 if row.recall.value is None else row.recall.value)


def _row(images: EvaluatedImages, c: int, name: str) -> ClassRow:
    found, scores, hits = images.metrics["per_class"][name], images.probabilities[:, c], images.labels == c
    intervals = found.get("intervals") or {}
    is_defined = bool(0 < hits.sum() < len(hits))
    return ClassRow(
        name=name,
        images=int(found["support"]),
        recall=Figure(value=found["recall"], interval=intervals.get("recall")),
        precision=Figure(value=found["precision"], interval=intervals.get("precision")),
        f1=found["f1"],
        auroc=_auroc(images, c, is_defined=is_defined),
        average_precision=float(sk.average_precision_score(hits, scores)) if is_defined else None,
    )


def _auroc(images: EvaluatedImages, c: int, *, is_defined: bool) -> Figure:
    if not is_defined:
        return Figure(value=None)
    scores, hits = images.probabilities[:, c], images.labels == c
    interval: Interval | None = auroc_interval([(scores, hits)], images.units)
    if is_binary(images.classes):  # the same for both classes, and the wider interval of the result
        stored = (images.metrics.get("intervals") or {}).get("auroc")
        interval = (stored[0], stored[1]) if stored else interval
    return Figure(value=float(sk.roc_auc_score(hits, scores)), interval=interval)
