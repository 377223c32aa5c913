"""What the page shows of the trials of a search."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.run_paths import RunPaths
from jobs.web.charts import search_charts
from trainer.model.names import MANIFEST_FILE
from trainer.report.charts import ReportChart
from trainer.search.trials import TrialTable, leaderboard, read_trial_events

ALWAYS_SHOWN = ("lr", "dropout", "head_width")  # columns even where all trials have the same value
NO_OPTIONS = ("trial", "metric", "spread", "best_epoch", "epochs", "seconds", "state", "why", "error", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The trials of a search.

    Attributes:
        metric: Name of the metric that ranks.
        rows: A row a trial as `nightshift trials --json` prints it, the best first.
        charts: The best value so far, and the curve of each trial.
        warning: Which lines of the journal are damaged, None if none are.
    """

    metric: str
    rows: tuple[Mapping[str, Any], ...]
    charts: tuple[ReportChart, ...]
    warning: str | None

    @property
    def options(self) -> list[str]:
        """The options that are columns: those that were searched, and those that differ."""
        names = [name for name in (self.rows[0] if self.rows else {}) if name not in NO_OPTIONS]
        return [name for name in names if name in ALWAYS_SHOWN or len({str(row.get(name)) for row in self.rows}) > 1]


def leaderboard_of(paths: RunPaths, metric: str, *, folds: int | None = None) -> Leaderboard:
    """Return the trials of a search.

    Args:
        paths: The search.
        metric: Name of the metric that ranks.
        folds: Number of folds of each trial; None if the valid split ranks.
    """
    found = read_trial_events(paths.trials)
    table = TrialTable.fold(found.lines, metric)
    published = str(paths.best) if (paths.best / MANIFEST_FILE).is_file() else None
    return Leaderboard(
        metric=metric,
        rows=tuple(leaderboard(table, published)),
        charts=search_charts(table, folds=folds),
        warning=found.warning,
    )
