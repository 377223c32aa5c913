"""Charts of an evaluation of one class per image: ROC, precision-recall, reliability diagram, decision curve."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import metrics as sk

from trainer.evaluation.bootstrap import Floats, Labels, Mask
from trainer.evaluation.metric_text import is_binary, is_positive_stated, quoted
from trainer.evaluation.recalibration import calibrated_event
from trainer.report.charts import ReportChart
from trainer.report.curve_data import (
    micro_average,
    net_benefit,
    precision_recall_band,
    precision_recall_steps,
    reliability_bins,
    roc_band,
)
from trainer.report.environment import number_text
from trainer.report.svg_chart import COLOURS, Axis, Band, Line, Mark, Note, chart, downsampled

SHARES = np.arange(1, 100) / 100  # thresholds of the decision curve
UNIT = (0, 1)
FALSE_RATE = Axis(name="false positive rate (1 − specificity)", low=0, high=1)
TRUE_RATE = Axis(name="true positive rate (sensitivity)", low=0, high=1)
RECALL = Axis(name="recall (sensitivity)", low=0, high=1)
PRECISION = Axis(name="precision (PPV)", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class ScoredClass:
    """The scores of one class against the rest: name of the curve, (n,) scores, and whether each is of the class."""

    name: str
    scores: Floats
    hits: Mask


@dataclass(frozen=True, kw_only=True)
class WithMetrics:
    """Metrics of a model, as `result.json` has them, and the classes that they are about."""

    metrics: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the model's outputs."""
        return tuple(self.metrics["classes"])

    @property
    def positive(self) -> int:
        """Index of the positive class; of the first class where none was stated."""
        return self.classes.index(self.metrics["positive"])

    @property
    def is_stated(self) -> bool:
        """Whether somebody said which class is the positive one."""
        return is_positive_stated(self.metrics)


@dataclass(frozen=True, kw_only=True)
class EvaluatedImages(WithMetrics):
    """What the charts of an evaluation show.

    Attributes:
        probabilities: (N, C) as `predict` gives them out.
        labels: (N,) true classes.
        units: (N,) group indices.
    """

    probabilities: Floats
    labels: Labels
    units: Labels


def evaluation_charts(images: EvaluatedImages) -> list[ReportChart]:
    """Return the charts of an evaluation, without those that its images do not allow."""
    drawn = [_roc(images), _precision_recall(images), _reliability(images), _decision_curve(images)]
    return [one for one in drawn if one is not None]


def scored_classes(images: EvaluatedImages) -> tuple[list[ScoredClass], str]:
    """Return the classes that get a curve, and a note on those that do not.

    Every class that the split has, against the rest; of more than the palette's colours the micro average and those
    with the lowest AUROC.
    """
    of_class = [_scored(images, c) for c in range(len(images.classes))]
    defined = [one for one in of_class if 0 < one.hits.sum() < len(one.hits)]
    if len(defined) <= COLOURS:
        return defined, ""
    scores, hits = micro_average(images.probabilities, images.labels)
    lowest = sorted(defined, key=lambda one: float(sk.roc_auc_score(one.hits, one.scores)))[: COLOURS - 1]
    note = f"the micro average and the {len(lowest)} of {len(defined)} classes with the lowest AUROC"
    return [ScoredClass(name="micro average", scores=scores, hits=hits), *lowest], note


def _scored(images: EvaluatedImages, c: int) -> ScoredClass:
    return ScoredClass(name=images.classes[c], scores=images.probabilities[:, c], hits=images.labels == c)


def _roc(images: EvaluatedImages) -> ReportChart | None:
    has_two = is_binary(images.classes)
    shown, note = ([_scored(images, images.positive)], "") if has_two else scored_classes(images)
    shown = [one for one in shown if 0 < one.hits.sum() < len(one.hits)]
    if not shown:
        return None
    lines = [Line(name="chance", xs=UNIT, ys=UNIT, reference=True)]
    for colour, one in enumerate(shown):
        false, true, _ = sk.roc_curve(one.hits, one.scores)
        lines.append(downsampled(one.name, false, true, colour))
    has_band = len(shown) == 1
    m, point = images.metrics, (images.metrics["sensitivity"], images.metrics["specificity"])
    marks = [Mark(name="operating point", x=1 - point[1], y=point[0])] if has_two and None not in point else []
    drawn = chart(
        lines, x=FALSE_RATE, y=TRUE_RATE, description="ROC curve", marks=marks, square=True,
        bands=[Band(points=roc_band(shown[0].scores, shown[0].hits, images.units))] if has_band else (),
    )  # fmt: skip
    about = f" of {quoted(shown[0].name)}" if has_band else ", mean of one class against the rest"
    band = "band: 95 % confidence at each threshold" if has_band else note
    limit = (m.get("undefined") or {}).get("auroc", "")
    caption = "; ".join(text for text in (f"AUROC {number_text(m['auroc'])}{about}", limit, band) if text)
    return ReportChart(chart=drawn, title="ROC curve" if has_band else "ROC curves", caption=caption)


def _precision_recall(images: EvaluatedImages) -> ReportChart | None:
    shown, note = scored_classes(images)
    if images.is_stated and is_binary(images.classes):
        shown = [one for one in shown if one.name == images.classes[images.positive]]
    if not shown:
        return None
    lines, has_band = list[Line](), len(shown) == 1
    if has_band:
        share = float(shown[0].hits.mean())
        lines.append(Line(name="chance", xs=UNIT, ys=(share, share), reference=True))
    for colour, one in enumerate(shown):
        lines.append(downsampled(one.name, *precision_recall_steps(one.hits, one.scores), colour))
    drawn = chart(
        lines, x=RECALL, y=PRECISION, description="Precision-recall curve",
        marks=_recall_mark(images) if has_band else (),
        bands=[Band(points=precision_recall_band(shown[0].scores, shown[0].hits, images.units))] if has_band else (),
        square=True,
    )  # fmt: skip
    areas = [
        f"{quoted(one.name)} {number_text(float(sk.average_precision_score(one.hits, one.scores)))}" for one in shown
    ]
    caption = note or f"average precision {', '.join(areas)}"
    if has_band:
        interval = images.metrics["intervals"].get("average_precision")
        found = f" (95 % CI {number_text(interval[0])} to {number_text(interval[1])})" if interval and not note else ""
        caption += f"{found}; band: 95 % confidence at each threshold"
    return ReportChart(chart=drawn, title="Precision-recall curve" + ("" if has_band else "s"), caption=caption)


def _recall_mark(images: EvaluatedImages) -> list[Mark]:
    row = images.metrics["per_class"][images.metrics["positive"]]
    if None in (row["recall"], row["precision"]):
        return []
    return [Mark(name="operating point", x=row["recall"], y=row["precision"])]


def _reliability(images: EvaluatedImages) -> ReportChart:
    scores, hits = calibrated_event(images.probabilities, images.labels, images.positive)
    event = quoted(images.classes[images.positive]) if is_binary(images.classes) else "the most probable class"
    bins = reliability_bins(scores, hits, images.units)
    drawn = chart(
        [
            Line(name="perfect calibration", xs=UNIT, ys=UNIT, reference=True),
            Line(name="this model", xs=[b.predicted for b in bins], ys=[b.observed for b in bins], dots=True,
                 ranges=[b.interval for b in bins]),
        ],
        x=Axis(name=f"predicted probability of {event}", low=0, high=1),
        y=Axis(name=f"observed frequency of {event}", low=0, high=1),
        description="Reliability diagram",
        notes=[Note(text=_short(b.count), x=(b.low + b.high) / 2, y=1) for b in bins],
        square=True,
    )  # fmt: skip
    caption = "images in each bin at the top; bars: 95 % confidence"
    return ReportChart(chart=drawn, title="Calibration (reliability diagram)", caption=caption)


def _decision_curve(images: EvaluatedImages) -> ReportChart | None:
    one = _scored(images, images.positive)
    if not images.is_stated or not 0 < one.hits.sum() < len(one.hits):
        return None
    stated = (images.metrics.get("at_prevalence") or {}).get("prevalence")
    prevalence = float(one.hits.mean()) if stated is None else float(stated)
    model, everyone = net_benefit(one.scores, one.hits, SHARES, prevalence)
    low, high = -0.3 * prevalence, 1.1 * prevalence
    drawn = chart(
        [
            Line(name="none positive", xs=UNIT, ys=(0, 0), reference=True),
            Line(name="this model", xs=SHARES.tolist(), ys=_above(model, low)),
            Line(name="all positive", xs=SHARES.tolist(), ys=_above(everyone, low), colour=1),
        ],
        x=Axis(name=f"threshold probability of {quoted(one.name)}", low=0, high=1),
        y=Axis(name="net benefit", low=low, high=high),
        description="Decision curve",
        square=True,
    )
    where = "of this split" if stated is None else "that was stated"
    caption = f"at a prevalence of {prevalence:.3g}, {where}; dashed: no image is called positive"
    caption += "; gaps of this model are below the axis" if (model < low).any() else ""
    return ReportChart(chart=drawn, title="Decision curve (net benefit)", caption=caption)


def _above(values: Floats, low: float) -> list[float]:
    """Return the values, NaN for those below the axis: they are not drawn."""
    return [float(value) if value >= low else math.nan for value in values]


def _short(count: int) -> str:
    """Return a count in at most four characters, so that those of neighbouring bins do not touch."""
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"  # noqa: PLR2004
