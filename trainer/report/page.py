"""`report.html`: one page with all that a run came to. Self-contained: no script, no network, no other file.

`ReportData` is all the page is made of; `trainer.report.gather` gathers it from a run, and a test can make one up.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cluster.files import write_text
from cluster.run_paths import RunPaths
from data_shards.index import ShardIndex
from trainer.evaluation.calibration import apply_temperature
from trainer.evaluation.predictions import Predictions
from trainer.report import charts
from trainer.report.misclassified import MisclassifiedImage
from trainer.report.svg_chart import Chart

HEADLINES = ("sensitivity", "specificity", "auroc", "accuracy")
MINOR = ("balanced_accuracy", "average_precision", "loss", "brier", "ece")
NAMES = {
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
    "loss": "Loss (cross-entropy)",
}


@dataclass(frozen=True, kw_only=True)
class ReportChart:
    """A chart with its title and one line on how to read it; a wide one takes the page's whole width."""

    chart: Chart
    title: str
    caption: str
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchSection:
    """What only the report of a search has.

    Attributes:
        leaderboard: The best trials, a row each, all with the same columns.
        charts: How the search came to its best.
    """

    leaderboard: Sequence[Mapping[str, Any]] = ()
    charts: Sequence[ReportChart] = ()


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a page is made of.

    Attributes:
        kind: "train", "evaluate" or "search".
        ended: RFC 3339, UTC.
        spec: The wish, as in `spec.json`.
        metrics: What `trainer.evaluation.metrics.score` found, and "split".
        predictions: Of the images of that split.
        index: Of the data set.
        epochs: Lines of `metrics.jsonl`; empty for an evaluation.
        search: What only a search has.
        mistakes: Images that were called wrongly, the worst first.
        facts: What else is worth knowing about the run: machine, versions, timing; shown in this order.
        warnings: What the reader must know before trusting the figures.
    """

    run_id: str
    kind: str
    ended: str
    spec: Mapping[str, Any]
    metrics: Mapping[str, Any]
    predictions: Predictions
    index: ShardIndex
    epochs: Sequence[Mapping[str, Any]] = ()
    search: SearchSection = SearchSection()
    misclassified: Sequence[MisclassifiedImage] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The model's classes in the order of its outputs."""
        return tuple(self.metrics["classes"])

    @property
    def positive(self) -> int:
        """Position of the positive class."""
        return self.classes.index(self.metrics["positive"])

    @property
    def positives(self) -> int:
        """Images of the positive class in the split."""
        return int((self.predictions.labels == self.positive).sum())

    @property
    def wrong(self) -> Mapping[str, int]:
        """How many mistakes of each sort there are, shown or not."""
        matrix, m = self.metrics["confusion_matrix"], self.metrics
        right = sum(row[c] for c, row in enumerate(matrix))
        missed, alarms = int(m["false_negatives"]), int(m["false_positives"])
        return {"missed": missed, "alarm": alarms, "confused": int(m["n"]) - right - missed - alarms}

    @property
    def leakage(self) -> str:
        """What packing said of images and groups that stand in two splits."""
        allowed = self.index.options.get("allow_leakage")
        if allowed is None:
            return "not known"
        return "was allowed at packing" if allowed else "none: no image or group stands in two splits"

    @cached_property
    def best_epoch(self) -> int | None:
        """The epoch whose model was published."""
        return charts.best_epoch(self.epochs, str(self.spec.get("best_by", "loss")))

    @cached_property
    def learning(self) -> tuple[Chart, ...]:
        """Curves over the epochs; none for an evaluation."""
        if not self.epochs:
            return ()
        return (
            charts.loss_curves(self.epochs, self.best_epoch),
            charts.validation_curves(self.epochs, self.best_epoch),
        )

    @cached_property
    def judgement(self) -> Mapping[str, Chart]:
        """ROC, precision-recall and reliability; the first two only where two classes have images."""
        labels, classes, positive = self.predictions.labels, self.classes, self.positive
        given = apply_temperature(self.predictions.probabilities, self.metrics.get("temperature", 1.0))
        drawn = {"reliability": charts.reliability(given, labels, classes=classes, positive=positive)}
        if not 0 < self.positives < len(labels):
            return drawn
        found = self.metrics["sensitivity"], self.metrics["specificity"]
        precision = self.metrics["per_class"][self.metrics["positive"]]["precision"]
        right = None if precision is None else (found[0], precision)
        roc = charts.roc_curves(given, labels, classes=classes, positive=positive, point=found)
        ranked = charts.precision_recall_curves(given, labels, classes=classes, positive=positive, point=right)
        return {"roc": roc, "precision_recall": ranked, **drawn}


def write_page(paths: RunPaths, data: ReportData) -> None:
    """Write the run's page, whole or not at all."""
    write_text(paths.report, render(data))


def render(data: ReportData) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "data_uri": _data_uri, "thousands": _thousands}
    page = environment.get_template("report.html.j2")
    return page.render(data=data, m=data.metrics, headlines=HEADLINES, minor=MINOR, names=NAMES)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u202f%"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def _thousands(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def _data_uri(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
