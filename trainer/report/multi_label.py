"""The report of a multi-label model: a row, curves and wrong decisions of each label instead of a confusion matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from trainer.evaluation.calibration import Calibration, Floats, LabelCalibration, Labels
from trainer.evaluation.multi_label_calibration import apply_temperatures
from trainer.evaluation.predictions import Predictions
from trainer.report.charts import ReportChart
from trainer.report.curve_data import BINS, precision_recall_steps
from trainer.report.examples import SHOWN, ExampleImage, ExampleKind
from trainer.report.page import ReportData
from trainer.report.svg_chart import Axis, Line, chart, downsampled

CURVES = 6  # the most labels in a chart; more curves are unreadable


@dataclass(frozen=True, kw_only=True)
class MultiLabelReportData(ReportData):
    """Content of the report of a multi-label model; `misclassified` are wrong decisions on one label each."""

    template: ClassVar[str] = "multi_label.html.j2"

    @property
    def error_counts(self) -> Mapping[str, int]:
        """Number of wrong decisions of each kind, over all labels."""
        micro = self.metrics["micro"]
        return {"false_negative": int(micro["false_negatives"]), "false_positive": int(micro["false_positives"])}

    @property
    def without_curves(self) -> Sequence[str]:
        """The labels that have no curves: all images where they are known have them, or none has."""
        return [name for name, row in self.metrics["labels"].items() if not 0 < row["positives"] < row["n"]]

    @cached_property
    def label_charts(self) -> tuple[ReportChart, ...]:
        """ROC, precision-recall and reliability curves; up to `CURVES` labels a chart."""
        probabilities = calibrated_labels(self.predictions, self.metrics)
        positions = range(len(self.classes))
        parts = [positions[start : start + CURVES] for start in range(0, len(positions), CURVES)]
        return tuple(one for part in parts for one in self._charts_of(part, probabilities))

    def _charts_of(self, labels: range, probabilities: Floats) -> list[ReportChart]:
        targets = self.predictions.labels
        known = {c: (targets[targets[:, c] >= 0, c], probabilities[targets[:, c] >= 0, c]) for c in labels}
        curves = {c: pair for c, pair in known.items() if 0 < pair[0].sum() < len(pair[0])}
        if not curves:
            return []
        return [
            self._chart("ROC curves", curves, _roc, x="false positive rate (1 − specificity)",
                        y="true positive rate (sensitivity)", diagonal="chance"),
            self._chart("Precision-recall curves", curves, _precision_recall, x="recall (sensitivity)",
                        y="precision (PPV)"),
            self._chart("Calibration (reliability diagram)", curves, _reliability, x="predicted probability",
                        y="observed frequency", diagonal="perfect calibration"),
        ]  # fmt: skip

    def _chart(
        self, title: str, curves: Mapping[int, tuple[Labels, Floats]], draw: Any, *, x: str, y: str, diagonal: str = ""
    ) -> ReportChart:
        lines = [Line(name=diagonal, xs=(0, 1), ys=(0, 1), reference=True)] if diagonal else []
        lines += [draw(self.classes[c], *pair, c % CURVES) for c, pair in curves.items()]
        drawn = chart(
            lines, x=Axis(name=x, low=0, high=1), y=Axis(name=y, low=0, high=1), description=title, square=True
        )
        return ReportChart(chart=drawn, title=title, caption=", ".join(self.classes[c] for c in curves))


def calibrated_labels(predictions: Predictions, metrics: Mapping[str, Any]) -> Floats:
    """Return the probabilities of an evaluation after temperature scaling, (N, C)."""
    labels = {name: LabelCalibration(temperature=row["temperature"]) for name, row in metrics["labels"].items()}
    return apply_temperatures(predictions.probabilities, Calibration(labels=labels), tuple(metrics["classes"]))


def worst_decisions(predictions: Predictions, metrics: Mapping[str, Any]) -> tuple[ExampleImage, ...]:
    """Return up to `SHOWN` wrong decisions of each kind over all labels, the most confident first.

    `label` and `predicted` of each are the position of the label that was decided wrongly.
    """
    seen, targets = calibrated_labels(predictions, metrics), predictions.labels
    distance = seen - np.array([metrics["labels"][name]["threshold"] for name in metrics["classes"]])
    kinds: dict[ExampleKind, tuple[Any, Floats]] = {
        "false_negative": ((targets == 1) & (distance < 0), -distance),
        "false_positive": ((targets == 0) & (distance >= 0), distance),
    }
    return tuple(
        ExampleImage(
            id=int(predictions.ids[row]),
            kind=kind,
            label=int(c),
            predicted=int(c),
            probabilities=tuple(seen[row].tolist()),
        )
        for kind, (mask, confidence) in kinds.items()
        for row, c in _highest(mask, confidence)
    )


def _highest(mask: Any, confidence: Floats) -> list[tuple[int, int]]:
    rows, columns = np.nonzero(mask)
    order = np.argsort(-confidence[rows, columns], kind="stable")[:SHOWN]
    return list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))


def _roc(name: str, hits: Labels, scores: Floats, colour: int) -> Line:
    false, true, _ = sk.roc_curve(hits, scores)
    return downsampled(name, false, true, colour)


def _precision_recall(name: str, hits: Labels, scores: Floats, colour: int) -> Line:
    return downsampled(name, *precision_recall_steps(hits == 1, scores), colour)


def _reliability(name: str, hits: Labels, scores: Floats, colour: int) -> Line:
    observed, predicted = calibration_curve(hits, scores, n_bins=BINS)
    return Line(name=name, xs=predicted.tolist(), ys=observed.tolist(), colour=colour, dots=True)
