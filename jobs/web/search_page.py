"""What the page shows of the trials of a search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.run_paths import RunPaths
from jobs.runs.damage import shown_or
from jobs.runs.trial_rows import TrialColumn, cell, columns_of, ranking_metric, rows_of
from jobs.web.charts import search_charts
from jobs.web.option_charts import option_charts
from trainer.report.charts import ReportChart
from trainer.search.trials import TrialTable, read_trial_events


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The trials of a search.

    Attributes:
        metric: Name of the metric that ranks.
        rows: One row per trial as `nightshift trials --json` prints it, the best first.
        columns: Those of the table.
        cells: The cells of each row.
        charts: The best value so far, the curve of each trial, and what the options do.
        missing: Why a chart is missing, "" if none is.
        warnings: Which files are damaged, in a line each.
    """

    metric: str
    rows: tuple[Mapping[str, Any], ...]
    columns: Sequence[TrialColumn]
    cells: Sequence[Sequence[str]]
    charts: tuple[ReportChart, ...]
    missing: str
    warnings: Sequence[str]


def leaderboard_of(paths: RunPaths, spec: Mapping[str, Any]) -> Leaderboard:
    """Return the trials of a search.

    Args:
        paths: The search.
        spec: Its spec.

    Raises:
        StorageError: The journal cannot be read.
        NewerVersion: This version does not know the metric that ranks the trials.
        KeyError, TypeError, ValueError: The spec or the journal is damaged.
    """
    found, metric = read_trial_events(paths.trials), ranking_metric(paths, spec)
    table = TrialTable.fold(found.lines, metric)
    rows = rows_of(paths, table)
    columns = columns_of(rows, metric)
    warnings = [found.warning] if found.warning else []
    nothing: tuple[tuple[ReportChart, ...], str] = ((), "")
    of_options, missing = shown_or(nothing, "spec.json", warnings, lambda: option_charts(paths, table))
    return Leaderboard(
        metric=metric,
        rows=tuple(rows),
        columns=columns,
        cells=[[cell(row, column.key) for column in columns] for row in rows],
        charts=(*search_charts(table, folds=spec.get("folds")), *of_options),
        missing=missing,
        warnings=warnings,
    )
