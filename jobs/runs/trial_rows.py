"""The leaderboard of a search as rows and columns of text."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cluster.run_paths import RunPaths
from trainer.model.names import MANIFEST_FILE
from trainer.search.trials import TrialTable, leaderboard

ALWAYS_SHOWN = ("lr", "dropout", "head_width")  # columns even where all trials have the same value
NO_OPTIONS = frozenset(
    {"trial", "metric", "spread", "best_epoch", "epochs", "seconds", "state", "why", "error", "checkpoint"}
)


class TrialColumn(NamedTuple):
    """A column: its heading, and the key of its values in a row."""

    heading: str
    key: str


def rows_of(paths: RunPaths, table: TrialTable) -> list[dict[str, Any]]:
    """Return a row per trial as `nightshift trials --json` prints it, the best first."""
    published = str(paths.best) if (paths.best / MANIFEST_FILE).is_file() else None
    return leaderboard(table, published)


def columns_of(rows: Sequence[Mapping[str, Any]], metric: str) -> list[TrialColumn]:
    """Return the columns to show, without the options that are equal in all trials."""
    options = dict.fromkeys(name for row in rows for name in row if name not in NO_OPTIONS)
    varied = [name for name in options if name in ALWAYS_SHOWN or len({str(row.get(name)) for row in rows}) > 1]
    has_spread = any(row["spread"] is not None for row in rows)
    return [
        TrialColumn("trial", "trial"),
        *(TrialColumn(name, name) for name in varied),
        TrialColumn(metric, "metric"),
        *([TrialColumn("spread", "spread")] if has_spread else []),
        TrialColumn("epoch", "best_epoch"),
        TrialColumn("epochs", "epochs"),
        TrialColumn("seconds", "seconds"),
        TrialColumn("state", "state"),
        TrialColumn("why", "why"),
    ]


def cell(row: Mapping[str, Any], key: str) -> str:
    """Return a value of a row as text."""
    if key == "why":
        return " ".join((row["error"] or row["why"] or "").split())
    value = row.get(key)
    if value is None:
        return "-"
    if key == "seconds":
        return f"{value:.1f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
