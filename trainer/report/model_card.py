"""The card of a published model: intended use, data, figures, decisions, limits, and the guidelines' items it fills.

Self-contained HTML like the report of a run, without torch and scikit-learn, because the command line renders it.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_shards.about import about_rows
from data_shards.columns import NOT_STATED
from data_shards.counted import counted
from data_shards.index import ShardIndex
from trainer.evaluation.decision_text import decision_line, supported_text, threshold_lines
from trainer.evaluation.metric_text import (
    HeadlineMetric,
    headline_metrics,
    is_binary,
    is_positive_stated,
    metric_name,
    prevalence_lines,
    quoted,
)
from trainer.evaluation.subgroup_text import NOTE, TOO_FEW, SubgroupTable, subgroup_lines, subgroup_tables
from trainer.evaluation.training_text import judged_on
from trainer.model.head import HeadConfig
from trainer.model.thresholds import NamedThreshold
from trainer.report.checklists import FilledItem, filled_items
from trainer.report.environment import area_percent, moment_text, number_text, page_environment, percent_text, thousands
from trainer.report.limits import leakage_text
from trainer.specs.option_text import flat_options, option_text

OTHER_METRICS = ("balanced_accuracy", "average_precision", "brier", "ece", "calibration_slope")
LABEL_METRICS = ("auroc", "sensitivity", "specificity")
NO_PERCENTAGES = frozenset({"auroc", "average_precision", "brier", "ece", "calibration_slope"})


@dataclass(frozen=True, kw_only=True)
class CardFigures:
    """What one run measured of the model.

    Attributes:
        run: Id of the run.
        ended: When it ended, RFC 3339 in UTC; "" if that is not known.
        shards: Location of the data set.
        metrics: The metrics in its result.
        limits: What limits them, a sentence each.
        is_external: Whether the images are of another data set than the model's.
    """

    run: str
    ended: str
    shards: str
    metrics: Mapping[str, Any]
    limits: Sequence[str]
    is_external: bool = False

    @property
    def title(self) -> str:
        """The images that were judged."""
        return f"{judged_on(self.metrics)}, {counted(self.metrics['n'], 'image')}" + (
            " of another data set than the model's" if self.is_external else ""
        )

    @property
    def rows(self) -> list[HeadlineMetric]:
        """The metrics, the most important first."""
        if "labels" in self.metrics:
            return [
                _metric(row, key, metric_name(key), of=quoted(label), note=_label_note(row, key))
                for label, row in self.metrics["labels"].items()
                for key in LABEL_METRICS
            ]
        first = headline_metrics(self.metrics)
        shown = {one.key for one in first}
        keys = [key for key in OTHER_METRICS if key not in shown and key in self.metrics]
        others = [_metric(self.metrics, key, metric_name(key), note=_note(self.metrics, key)) for key in keys]
        return [*first, *self._predictive_values(), *others]

    def _predictive_values(self) -> list[HeadlineMetric]:
        """Return PPV and NPV at the share of positives among these images."""
        classes = self.metrics["classes"]
        if not (is_positive_stated(self.metrics) and is_binary(classes)):
            return []
        positive = self.metrics["positive"]
        other = next(name for name in classes if name != positive)
        rows = self.metrics["per_class"]
        note = "at the share of positives among these images"
        return [
            _metric(rows[name], "precision", title, of=f"of {quoted(positive)}", note=note)
            for name, title in ((positive, "PPV"), (other, "NPV"))
        ]

    @property
    def lines(self) -> list[str]:
        """Decision rule, what is known about its threshold, and predictive values at a stated prevalence."""
        return [
            f"decision: {decision_line(self.metrics)}",
            *threshold_lines(self.metrics),
            *prevalence_lines(self.metrics),
        ]

    @property
    def subgroups(self) -> list[SubgroupTable]:
        """The metrics by subgroup."""
        return subgroup_tables(self.metrics)

    def check(self) -> None:
        """Read all that a card shows of the metrics.

        Raises:
            TypeError, ValueError, LookupError, AttributeError, ArithmeticError: They have another shape.
        """
        for row in self.rows:
            for value in (row.value, *(row.interval or ())):
                metric_in_unit(value, row.key)
        counts = [count for row in self.metrics.get("confusion_matrix") or () for count in row]
        for group in (group for table in self.subgroups for group in table.rows):
            counts += [group.images, group.groups, *([] if group.positives is None else [group.positives])]
        _ = (self.title, self.lines, subgroup_lines(self.metrics), [thousands(count) for count in counts])


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Content of the card.

    Attributes:
        name: Id of the run that published the model, or its folder.
        names: Names under which it is in use.
        weights: sha256 of its weights.
        config: Its configuration.
        trained: When its training ended, RFC 3339 in UTC; "" if that is not known.
        shards: Location of the data set that it was trained on, "" if that is not known.
        index: That data set, as it was then; None if it cannot be read.
        groups: Number of groups of each split, as far as it is known.
        spec: The options of the training; empty if its run is not in the storage.
        command: The command that repeats the training, likewise "".
        figures: What runs measured, the test split first.
        thresholds: The model's thresholds.
        audit: The audit of the data set as JSON values; None if it was not audited.
        has_outdated_audit: Whether the stored audit is of another version of the method, and thus not shown.
        versions: Version of each package that wrote the card.
    """

    name: str
    names: Sequence[str]
    weights: str
    config: HeadConfig
    trained: str
    shards: str
    index: ShardIndex | None
    groups: Mapping[str, int] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    figures: Sequence[CardFigures] = ()
    thresholds: Sequence[NamedThreshold] = ()
    audit: Mapping[str, Any] | None = None
    has_outdated_audit: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def intended_use(self) -> str:
        """What the data set is stated to be meant for."""
        return (self.index and self.index.about and self.index.about.intended_use) or NOT_STATED

    @property
    def about(self) -> list[tuple[str, str]]:
        """What is stated about the data set."""
        return about_rows(self.index.about if self.index else None)

    @property
    def leakage(self) -> str:
        """Whether packing found or allowed images or groups in more than one split."""
        return leakage_text(self.index) if self.index else NOT_STATED

    @property
    def items(self) -> list[FilledItem]:
        """The items of the guidelines, filled or open."""
        return filled_items(self._known())

    def _known(self) -> set[str]:
        found = {"model"}
        if self.index is not None:
            stated = self.index.about.model_dump() if self.index.about else {}
            found |= {"index", *(name for name, text in stated.items() if text)}
            found |= {"group_key"} & self.index.options.keys()
        facts = {
            "spec": self.spec,
            "audit": self.audit,
            "metrics": self.figures,
            "subgroups": any(one.subgroups for one in self.figures),
            "matrix": any("confusion_matrix" in one.metrics for one in self.figures),
            "external": any(one.is_external for one in self.figures),
        }
        return found | {name for name, value in facts.items() if value}


def render_card(card: ModelCard) -> str:
    """Return the card as HTML."""
    filters: dict[str, Callable[..., Any]] = {
        "quoted_argument": shlex.quote,
        "flat_options": flat_options,
        "option_text": option_text,
        "number": number_text,
        "shown": metric_in_unit,
        "quoted": quoted,
        "thousands": thousands,
        "percent": percent_text,
        "supported": supported_text,
        "moment": moment_text,
        "area_percent": area_percent,
    }
    return (
        page_environment(filters=filters)
        .get_template("model_card.html.j2")
        .render(card=card, subgroup_note=NOTE, too_few=TOO_FEW, not_stated=NOT_STATED)
    )


def metric_in_unit(value: float | None, key: str) -> str:
    """Return a value in the unit of its metric."""
    if value is None:
        return "undefined"
    return number_text(float(value), key) if key in NO_PERCENTAGES else percent_text(value)


def _note(metrics: Mapping[str, Any], key: str) -> str:
    """Return what a metric of one class per image is about where its name does not say it."""
    if limit := (metrics.get("undefined") or {}).get(key):
        return str(limit)
    event = f"of {quoted(metrics['positive'])}" if is_binary(metrics["classes"]) else ""
    notes = {
        "average_precision": event or "mean of each class against the rest",
        "ece": "of the most probable class",
        "calibration_slope": event or "of the most probable class",
    }
    return notes.get(key, "")


def _label_note(row: Mapping[str, Any], key: str) -> str:
    """Return how many images a metric of a label is about."""
    present, unknown = row["positives"], f", {row['unknown']} unknown" if row["unknown"] else ""
    counts = {"sensitivity": f"{present} present", "specificity": f"{row['n'] - present} absent"}
    return counts.get(key, f"{present} present, {row['n'] - present} absent{unknown}")


def _metric(row: Mapping[str, Any], key: str, name: str, *, of: str = "", note: str = "") -> HeadlineMetric:
    interval = (row.get("intervals") or {}).get(key)
    return HeadlineMetric(name=name, of=of, value=row.get(key), interval=interval, key=key, note=note)
