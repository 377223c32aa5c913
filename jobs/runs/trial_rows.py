"""The leaderboard of a search as rows and columns of text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from cluster.errors import NewerVersion, StorageError
from cluster.files import read_json_object
from cluster.run_paths import RunPaths
from trainer.evaluation.metric_text import digits_text
from trainer.model.names import MANIFEST_FILE
from trainer.search.leaderboard import leaderboard
from trainer.search.trials import TrialTable
from trainer.specs import SearchSpec
from trainer.specs.metric import HIGHER_IS_BETTER
from trainer.specs.search_space import Config

ALWAYS_SHOWN = ("lr", "dropout", "head_width")  # columns even where all trials have the same value
NO_OPTIONS = frozenset(
    {"trial", "metric", "spread", "best_epoch", "epochs", "seconds", "state", "why", "error", "checkpoint", "default"}
)
WHY = {  # why a trial finished, as `trials.jsonl` has it, in words
    "epochs": "ran all epochs",
    "patience": "early stopping",
    "rung": "stopped (ASHA)",
}


class TrialColumn(NamedTuple):
    """A column: its heading, and the key of its values in a row."""

    heading: str
    key: str


def ranking_metric(paths: RunPaths, spec: Mapping[str, Any]) -> str:
    """Return the metric by which a search ranks its trials.

    Raises:
        NewerVersion: This version does not know the metric.
        KeyError, TypeError: The spec names none.
    """
    metric = spec["best_by"]
    if not isinstance(metric, str):
        raise TypeError("the name of a metric is no text")
    if metric not in HIGHER_IS_BETTER:
        raise NewerVersion(
            f"{paths.run_id} is ranked by {metric!r}, which this version does not know; update Nightshift"
        )
    return metric


def rows_of(paths: RunPaths, table: TrialTable) -> list[dict[str, Any]]:
    """Return a row per trial as `nightshift trials --json` prints it, the best first."""
    try:
        number = read_json_object(paths.best / MANIFEST_FILE).get("trial")
    except StorageError:  # nothing is published yet
        return leaderboard(table, is_default=_is_default(paths))
    published = number if isinstance(number, int) else None
    return leaderboard(table, str(paths.best), published=published, is_default=_is_default(paths))


def _is_default(paths: RunPaths) -> Callable[[Config], bool]:
    """Return what tells the default trial of a search; none where its spec cannot be read."""
    try:
        return SearchSpec.model_validate(read_json_object(paths.spec)).is_default
    except (StorageError, ValidationError):
        return lambda _: False


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
    if key == "trial":
        return f"{row['trial']} (default)" if row.get("default") else str(row["trial"])
    if key == "why":
        return " ".join((row["error"] or WHY.get(row["why"], row["why"]) or "").split())
    value = row.get(key)
    if value is None:
        return "-"
    if key == "seconds":
        return f"{value:.1f}"
    return digits_text(value, of=key) if isinstance(value, float) else str(value)
