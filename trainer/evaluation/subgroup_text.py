"""How texts name the metrics by subgroup of a result. Pure text: the command line imports it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_shards.columns import NOT_STATED
from data_shards.counted import counted
from trainer.evaluation.metric_text import figure_text, interval_text, is_binary, is_positive_stated, quoted

TOO_FEW = "too few to say"
NEEDED = {"column", "value", "n", "groups", "positives", "intervals"}  # of each row
NOTE = (
    "Differences between subgroups are partly chance: the more subgroups, the more differ. The 95 % intervals are "
    "not corrected for their number."
)


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """The metrics of one value of a kept column, in words.

    Attributes:
        value: The value; `not stated` for the images without one.
        label: The label that the metrics are about, "" if an image has one class.
        images: Number of images; of a label those where it is known.
        groups: Number of groups (patients or cases).
        positives: Number of positive images; None if no class is the positive one.
        figures: Name, value and interval of each metric, both None where too few images say nothing.
    """

    value: str
    label: str
    images: int
    groups: int
    positives: int | None
    figures: Sequence[tuple[str, float | None, Sequence[float] | None]]


@dataclass(frozen=True, kw_only=True)
class SubgroupTable:
    """The subgroups of one kept column.

    Attributes:
        positive: What the positive images have, in quotes; "" if no class is the positive one or each label is.
        left_out: Number of images with values that have no row.
    """

    column: str
    rows: Sequence[Subgroup]
    positive: str
    left_out: int

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return [name for name, _, _ in self.rows[0].figures]


def subgroup_tables(metrics: Mapping[str, Any]) -> list[SubgroupTable]:
    """Return a table for each kept column of a result; none if the data set has no such columns."""
    rows = metrics.get("subgroups")
    if not rows or not isinstance(rows, list):
        return []
    if not all(isinstance(row, Mapping) and row.keys() >= NEEDED for row in rows):
        return []  # damaged
    names, positive = _figure_names(metrics), _positive(metrics)
    return [
        SubgroupTable(
            column=column,
            rows=[_subgroup(row, names) for row in rows if row["column"] == column],
            positive=positive,
            left_out=next((int(row.get("left_out", 0)) for row in rows if row["column"] == column), 0),
        )
        for column in dict.fromkeys(row["column"] for row in rows)
    ]


def subgroup_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line for each subgroup of an evaluation."""
    return [line for table in subgroup_tables(metrics) for line in _lines(table)]


def _lines(table: SubgroupTable) -> list[str]:
    lines = []
    for row in table.rows:
        counts = counted(row.images, "image") + ("" if row.positives is None else f", {row.positives} positive")
        figures = ", ".join(f"{name} {_figure(value, interval)}" for name, value, interval in row.figures)
        lines.append(f"{table.column} {row.value}{f', {row.label}' if row.label else ''} ({counts}): {figures}")
    return (
        [*lines, f"{table.column}: {counted(table.left_out, 'image')} with other values"] if table.left_out else lines
    )


def _figure(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or not interval:
        return TOO_FEW
    return figure_text(value) + interval_text(interval)


def _subgroup(row: Mapping[str, Any], names: Mapping[str, str]) -> Subgroup:
    intervals = row["intervals"]
    return Subgroup(
        value=row["value"] or NOT_STATED,
        label=row.get("label", ""),
        images=row["n"],
        groups=row["groups"],
        positives=row["positives"] if "sensitivity" in names else None,
        figures=[(title, row.get(key), intervals.get(key)) for key, title in names.items()],
    )


def _figure_names(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics of a row in their order, with their names."""
    names = {"sensitivity": "sensitivity", "specificity": "specificity", "auroc": "AUROC"}
    if metrics.get("multi_label"):
        return names
    if is_positive_stated(metrics):
        is_mean = not is_binary(metrics["classes"])  # the AUROC of the whole split, and this one is of one class
        return names | ({"auroc": f"AUROC of {quoted(metrics['positive'])}"} if is_mean else {})
    if is_binary(metrics["classes"]):
        first, second = map(quoted, metrics["classes"])
        return {"sensitivity": f"recall of {first}", "specificity": f"recall of {second}", "auroc": "AUROC"}
    return {"accuracy": "accuracy", "auroc": "mean AUROC"}


def _positive(metrics: Mapping[str, Any]) -> str:
    if metrics.get("multi_label") or not (is_positive_stated(metrics) or is_binary(metrics["classes"])):
        return ""
    return quoted(metrics["positive"])
