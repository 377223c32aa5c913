"""Render `report.html`: one self-contained page without scripts, network access or other files.

`ReportData` is the whole content of the page; `trainer.report.gather` collects it from a run.
"""

import base64
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment, PackageLoader, meta

from cluster.lease import Lease
from data_shards.about import about_rows
from data_shards.index import ShardIndex, overview
from trainer.audit.beside_model import AuditBesideModel
from trainer.audit.regions import region_lines
from trainer.evaluation.decision_text import (
    choice_of,
    chosen_on,
    decision_line,
    may_have_chosen,
    threshold_lines,
)
from trainer.evaluation.metric_text import (
    HeadlineMetric,
    headline_metrics,
    is_binary,
    label_headline,
    metric_title,
    prevalence_lines,
    quoted,
)
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.subgroup_text import NOTE, TOO_FEW, SubgroupTable, subgroup_tables
from trainer.evaluation.temperature import apply_temperature
from trainer.evaluation.training_text import judged_on
from trainer.report import charts
from trainer.report.charts import ReportChart
from trainer.report.class_table import ClassRow, class_rows
from trainer.report.environment import area_percent, moment_text, number_text, page_environment, percent_text, thousands
from trainer.report.evaluation_charts import EvaluatedImages, WithMetrics, evaluation_charts
from trainer.report.examples import ExampleImage
from trainer.report.head_comparison import HeadComparison
from trainer.report.limits import leakage_text
from trainer.report.svg_chart import Chart
from trainer.specs.option_text import flat_options, option_text

LABEL_METRICS = ("auroc", "average_precision", "sensitivity", "specificity", "accuracy")  # columns of a label's row
OTHER_METRICS = ("balanced_accuracy", "loss", "brier", "ece", "calibration_slope", "calibration_intercept")
NOTES = {"loss": " (cross-entropy)", "calibration_slope": " (1 is best)", "calibration_intercept": " (0 is best)"}
NAMES = {key: metric_title(key) + NOTES.get(key, "") for key in (*LABEL_METRICS, *OTHER_METRICS)}


@dataclass(frozen=True, kw_only=True)
class SearchSection:
    """The part that only the report of a search has.

    Attributes:
        notes: Which trial was published and why, and what the value of the best one is worth.
        leaderboard: The best trials, one row each, all with the same columns.
        charts: Progress of the search, option importance and trials.
    """

    notes: Sequence[str] = ()
    leaderboard: Sequence[Mapping[str, Any]] = ()
    charts: Sequence[ReportChart] = ()


@dataclass(frozen=True, kw_only=True)
class ReportData(WithMetrics):
    """Content of a report.

    Attributes:
        kind: "train", "evaluate" or "search".
        ended: RFC 3339, UTC.
        spec: The run configuration, as in `spec.json`.
        predictions: Labels and probabilities of the images of that split.
        index: Index of the data set.
        epochs: Lines of `metrics.jsonl`; empty for an evaluation.
        search: The part that only a search has.
        misclassified: Misclassified images, the most confident errors first.
        correct: Examples of images that are classified correctly.
        groups: Number of groups (patients or cases) of each split, as far as it is known.
        command: The command that repeats the run.
        facts: Tables about the run in the order shown: timing, hardware, software.
        warnings: Limits of the metrics, shown above them.
        seen: Whether the model was trained or chosen on these images; "" if the result does not say it.
        audit: The audit of the data set as JSON values, None if it was not audited.
        has_outdated_audit: Whether the stored audit is of another version of the method, and thus not shown.
        beside: The model beside the audit, None without an audit.
        heads: The head beside baselines; None for a run without them.
    """

    run_id: str
    kind: str
    ended: str
    spec: Mapping[str, Any]
    predictions: Predictions
    index: ShardIndex
    epochs: Sequence[Mapping[str, Any]] = ()
    search: SearchSection = SearchSection()
    misclassified: Sequence[ExampleImage] = ()
    correct: Sequence[ExampleImage] = ()
    groups: Mapping[str, int] = field(default_factory=dict)
    command: str = ""
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    seen: str = ""
    audit: Mapping[str, Any] | None = None
    has_outdated_audit: bool = False
    beside: AuditBesideModel | None = None
    heads: HeadComparison | None = None

    template: ClassVar[str] = "report.html.j2"

    @property
    def positive_count(self) -> int:
        """Number of images of the positive class in the split."""
        return int((self.predictions.labels == self.positive).sum())

    @property
    def headline(self) -> Sequence[HeadlineMetric]:
        """The first metrics."""
        if self.metrics.get("multi_label"):
            return [one for one in label_headline(self.metrics) if one.key != "loss"]
        return headline_metrics(self.metrics)

    @property
    def about(self) -> list[tuple[str, str]]:
        """What is stated about the data set."""
        return about_rows(self.index.about)

    @property
    def subgroups(self) -> Sequence[SubgroupTable]:
        """A table of metrics by subgroup for each column that the data set keeps."""
        return subgroup_tables(self.metrics)

    @property
    def error_titles(self) -> Sequence[tuple[str, str]]:
        """Kind and title of the groups of misclassified images."""
        positive, *others = sorted(self.classes, key=lambda name: name != self.metrics["positive"])
        if self.is_stated:
            return [
                ("false_negative", f"False negatives: {quoted(positive)} classified as another class"),
                ("false_positive", f"False positives: another class classified as {quoted(positive)}"),
                ("other", "Errors between other classes"),
            ]
        if is_binary(self.classes):
            first, second = quoted(positive), quoted(others[0])
            return [
                ("false_negative", f"{first} classified as {second}"),
                ("false_positive", f"{second} classified as {first}"),
            ]
        return [("other", "All errors")]

    @property
    def error_counts(self) -> Mapping[str, int]:
        """Number of misclassified images of each kind, including those that the report does not show."""
        matrix, m = self.metrics["confusion_matrix"], self.metrics
        correct = sum(row[c] for c, row in enumerate(matrix))
        if not (self.is_stated or is_binary(self.classes)):
            return {"other": int(m["n"]) - correct}
        negatives, positives = int(m["false_negatives"]), int(m["false_positives"])
        return {
            "false_negative": negatives,
            "false_positive": positives,
            "other": int(m["n"]) - correct - negatives - positives,
        }

    @property
    def threshold_lines(self) -> Sequence[str]:
        """What is known about the threshold, and the predictive values at the stated prevalence."""
        return [*threshold_lines(self.metrics), *map(_capitalized, prevalence_lines(self.metrics))]

    @property
    def decision(self) -> str:
        """The decision rule."""
        return decision_line(self.metrics)

    @property
    def leakage(self) -> str:
        """Whether packing found or allowed images or groups in more than one split."""
        return leakage_text(self.index)

    @property
    def region_lines(self) -> Sequence[str]:
        """What the model does with rim and center of the images."""
        return region_lines(self.beside.regions) if self.beside and self.beside.regions else []

    @property
    def additions(self) -> list[str]:
        """Each addition to the data set, in words."""
        return [
            f"{one['time'][:10]}: {', '.join(f'{count:,} {split}' for split, count in one['samples'].items())}"
            for one in overview(self.index)["history"]
        ]

    @cached_property
    def best_epoch(self) -> int | None:
        """The epoch whose weights were published."""
        return charts.best_epoch(self.epochs, str(self.spec.get("best_by", "loss")))

    @cached_property
    def epoch_charts(self) -> tuple[Chart, ...]:
        """Loss and validation metrics by epoch; empty for an evaluation."""
        if not self.epochs:
            return ()
        return (
            charts.loss_curves(self.epochs, self.best_epoch),
            charts.validation_curves(self.epochs, self.best_epoch),
        )

    @cached_property
    def images(self) -> EvaluatedImages:
        """What the charts and the table by class are computed from."""
        labels, units = self.predictions.labels, self.predictions.groups
        return EvaluatedImages(
            probabilities=apply_temperature(self.predictions.probabilities, self.metrics.get("temperature", 1.0)),
            labels=labels,
            units=np.arange(len(labels), dtype=np.int64) if units is None else units,
            metrics=self.metrics,
        )

    @cached_property
    def evaluation_charts(self) -> Sequence[ReportChart]:
        """ROC, precision-recall, reliability diagram and decision curve, as far as the images allow them."""
        return evaluation_charts(self.images)

    @cached_property
    def class_rows(self) -> Sequence[ClassRow]:
        """The metrics of each class against the rest."""
        return class_rows(self.images)


def write_page(lease: Lease, data: ReportData) -> None:
    """Write `report.html` atomically."""
    lease.write_text(lease.paths.report, render(data))


def report_environment() -> Environment:
    """Return the environment of reports, which keeps the templates that it has compiled."""
    filters: dict[str, Callable[..., Any]] = {
        "quoted_argument": shlex.quote,
        "flat_options": flat_options,
        "option_text": option_text,
        "percent": percent_text,
        "number": number_text,
        "data_uri": _data_uri,
        "thousands": thousands,
        "moment": moment_text,
        "shown": _shown,
        "area_percent": area_percent,
        "quoted": quoted,
    }
    return page_environment(filters=filters)


def compile_templates(*templates: str) -> None:
    """Compile templates and all that they refer to, for the reports of this process and of its forks."""
    environment = report_environment()
    for template in templates:
        environment.get_template(template)
        source, _, _ = PackageLoader("trainer.report", ".").get_source(environment, template)
        compile_templates(*filter(None, meta.find_referenced_templates(environment.parse(source))))


def render(data: ReportData) -> str:
    """Return the report as HTML."""
    return (
        report_environment()
        .get_template(data.template)
        .render(
            data=data,
            m=data.metrics,
            judged_on=judged_on(data.metrics),
            other_metrics=OTHER_METRICS,
            label_metrics=LABEL_METRICS,
            names=NAMES,
            subgroup_note=NOTE,
            too_few=TOO_FEW,
            choice_of=choice_of,
            chosen_on=chosen_on,
            may_have_chosen=may_have_chosen,
        )
    )


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _shown(value: float | None, name: str) -> str:
    """Return a main metric or an end of its interval in the unit of the metric: AUROC is no percentage."""
    return number_text(value) if name == "auroc" else percent_text(value)


def _data_uri(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
