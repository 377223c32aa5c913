"""The figures of a run with their intervals, and what limits them, in words."""

from collections.abc import Sequence
from typing import Any

from jobs.runs.progress_text import duration
from jobs.runs.record import JobRecord
from jobs.runs.state import RunState, seconds_between
from trainer.evaluation.decision_text import decision_line, threshold_lines
from trainer.evaluation.metric_text import figure_text, interval_text, prevalence_lines
from trainer.evaluation.seen_images import evaluation_lines
from trainer.evaluation.subgroup_text import subgroup_lines
from trainer.phase_times import timing_text

SHOWN_OF_LABEL = ("auroc", "sensitivity", "specificity")  # of each label of a multi-label model
LABEL_HEADINGS = ("Label", "AUROC", "Sensitivity", "Specificity", "Positive of known", "Unknown")
DECIDING = ("evaluate", "predict", "export")  # kinds of runs whose result depends on a decision rule


def decision_rows(record: JobRecord) -> list[tuple[str, str]]:
    """Return the decision rule of an evaluation, prediction or export, and what is known about threshold and images."""
    if record.result is None or record.state.kind not in DECIDING:
        return []
    metrics = record.result["metrics"]
    values = metrics if record.state.kind == "evaluate" else record.result
    rows = [("decision", decision_line(values)), *(("", line) for line in threshold_lines(metrics))]
    seen = evaluation_lines(record.result, str(metrics.get("split"))) if record.state.kind == "evaluate" else []
    rows += [("", line) for line in prevalence_lines(metrics)]
    subgroups = subgroup_lines(metrics)
    return [*rows, *_block("images", seen), *_block("subgroup", subgroups)]


def duration_text(state: RunState) -> str:
    """Return how long a run took from the start of its first attempt to its end, "" if it has not ended."""
    if state.started is None or state.ended is None:
        return ""
    return duration(seconds_between(state.started, state.ended))


def timing_of(record: JobRecord) -> str:
    """Return the seconds of each part of a run that succeeded, which add up to those since it was submitted."""
    state = record.state
    whole = None if state.ended is None else seconds_between(state.created, state.ended)
    return timing_text((record.result or {}).get("timing"), whole)


def _block(title: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return lines as rows, of which only the first has the title."""
    return [(title if at == 0 else "", line) for at, line in enumerate(lines)]


def metric_with_interval(metrics: dict[str, Any], name: str) -> str:
    """Return a metric with its 95 % interval, such as `auroc 0.9812 (0.9634 to 0.9945)`."""
    return with_interval(name, metrics.get(name), (metrics.get("intervals") or {}).get(name))


def label_lines(metrics: dict[str, Any]) -> list[str]:
    """Return a line for each label of a multi-label evaluation: its metrics where it is known."""
    return [
        f"{'':<8} {name}: {', '.join(metric_with_interval(row, metric) for metric in SHOWN_OF_LABEL)}"
        f" ({row['positives']} of {row['n']} known, {row['unknown']} unknown)"
        for name, row in (metrics.get("labels") or {}).items()
    ]


def label_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of a row for each label, in the order of `LABEL_HEADINGS`."""
    return [
        (
            name,
            *(_cell(row.get(metric), (row.get("intervals") or {}).get(metric)) for metric in SHOWN_OF_LABEL),
            f"{row['positives']} of {row['n']}",
            str(row["unknown"]),
        )
        for name, row in (metrics.get("labels") or {}).items()
    ]


def _cell(value: float | None, low_high: Sequence[float] | None) -> str:
    return with_interval("", value, low_high).strip()


def with_interval(name: str, value: float | None, low_high: Sequence[float] | None) -> str:
    """Return a value with its 95 % interval, if it has one; "undefined" where there is no value."""
    if value is None:
        return f"{name} undefined"
    return f"{name} {figure_text(value, of=name)}{interval_text(low_high, of=name)}"
