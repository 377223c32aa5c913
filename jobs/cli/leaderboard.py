"""The trials of a search as people see them. Reads the ledger alone; imports neither torch nor ray."""

from typing import Any

from rich.table import Table

from cluster.errors import StorageError
from cluster.files import read_json, read_lines
from cluster.run_paths import RunPaths
from jobs.errors import Refused
from trainer.model.names import MANIFEST_FILE
from trainer.search.trials import TrialTable, leaderboard

ALWAYS = ("lr", "dropout", "head_width")  # columns whether they vary or not


def table_of(paths: RunPaths) -> TrialTable:
    """Return the trials of a search as they stand.

    Raises:
        Refused: The run is no search.
    """
    spec = read_json(paths.spec)
    if spec.get("kind") != "search":
        raise Refused(
            f"{paths.run_id} is a {spec.get('kind')}, not a search; `nightshift list --kind search` shows them"
        )
    return TrialTable.fold(read_lines(paths.trials), str(spec["best_by"]))


def rows_of(paths: RunPaths) -> list[dict[str, Any]]:
    """Return a row a trial, the best first."""
    published = str(paths.best) if (paths.best / MANIFEST_FILE).is_file() else None
    return leaderboard(table_of(paths), published)


def published_best(paths: RunPaths) -> dict[str, Any] | None:
    """Return what the manifest of the published model says, None before the first."""
    try:
        return dict(read_json(paths.best / MANIFEST_FILE))
    except StorageError:
        return None


def as_table(rows: list[dict[str, Any]], metric: str) -> Table:
    """Return the rows as a table; options that are alike in all trials are left out."""
    varied = [name for name in _options(rows) if name in ALWAYS or len({str(row[name]) for row in rows}) > 1]
    spread = any(row["spread"] is not None for row in rows)
    heads = ["TRIAL", *(name.upper() for name in varied), metric.upper(), *(["SPREAD"] if spread else [])]
    table = Table(*heads, "EPOCH", "EPOCHS", "SECONDS", "STATE", "WHY", box=None, pad_edge=False)
    for row in rows:
        values = [_short(row[name]) for name in varied]
        spreads = [_short(row["spread"])] if spread else []
        table.add_row(
            str(row["trial"]),
            *values,
            _short(row["metric"]),
            *spreads,
            _short(row["best_epoch"]),
            str(row["epochs"]),
            f"{row['seconds']:.1f}",
            row["state"],
            (row["error"] or row["why"] or "")[:60],
        )
    return table


def _options(rows: list[dict[str, Any]]) -> list[str]:
    known = {"trial", "metric", "spread", "best_epoch", "epochs", "seconds", "state", "why", "error", "checkpoint"}
    return [name for name in (rows[0] if rows else {}) if name not in known]


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
