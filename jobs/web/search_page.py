"""What the page shows of the trials of a search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.run_paths import RunPaths
from jobs.web.charts import search_charts
from trainer.model.names import MANIFEST_FILE
from trainer.report.charts import ReportChart
from trainer.search.trials import TrialTable, leaderboard, read_trial_events
from trainer.specs.metric import loss_of

ALWAYS_SHOWN = ("lr", "dropout", "head_width")  # columns even where all trials have the same value
NO_OPTIONS = ("trial", "metric", "spread", "best_epoch", "epochs", "seconds", "state", "why", "error", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The trials of a search.

    Attributes:
        metric: Name of the metric that ranks.
        rows: A row a trial as `nightshift trials --json` prints it, the best first.
        options: The options that are columns.
        cells: The cells of each row after the trial's number: options, metric, best epoch, epochs, seconds, state, why.
        charts: The best value so far, and the curve of each trial.
        warning: Which lines of the journal are damaged, None if none are.
    """

    metric: str
    rows: tuple[Mapping[str, Any], ...]
    options: Sequence[str]
    cells: Sequence[Sequence[str]]
    charts: tuple[ReportChart, ...]
    warning: str | None


def leaderboard_of(paths: RunPaths, spec: Mapping[str, Any]) -> Leaderboard:
    """Return the trials of a search.

    Args:
        paths: The search.
        spec: Its spec.

    Raises:
        StorageError: The journal cannot be read.
        KeyError, TypeError, ValueError: The spec or the journal is damaged.
    """
    found, metric = read_trial_events(paths.trials), str(spec["best_by"])
    loss_of(0.0, metric)  # a metric that exists
    table = TrialTable.fold(found.lines, metric)
    published = str(paths.best) if (paths.best / MANIFEST_FILE).is_file() else None
    rows = leaderboard(table, published)
    options = _options(rows)
    return Leaderboard(
        metric=metric,
        rows=tuple(rows),
        options=options,
        cells=[_cells(row, options) for row in rows],
        charts=search_charts(table, folds=spec.get("folds")),
        warning=found.warning,
    )


def _options(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options that are columns: those that were searched, and those that differ."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in NO_OPTIONS))
    return [name for name in names if name in ALWAYS_SHOWN or len({str(row.get(name)) for row in rows}) > 1]


def _cells(row: Mapping[str, Any], options: Sequence[str]) -> list[str]:
    numbers = [row["metric"], row["best_epoch"], row["epochs"]]
    return [
        *(_short(row.get(name)) for name in options),
        *map(_short, numbers),
        f"{row['seconds']:.1f}",
        row["state"],
        row["error"] or row["why"] or "",
    ]


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
