"""What a run tells epoch by epoch, read back from its files. Imports neither torch nor ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from cluster.files import read_lines
from cluster.run_paths import RunPaths

NO_FIGURES = ("epoch", "epochs", "attempt", "trial")


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch.

    Attributes:
        epoch: Its number, from 1.
        moment: When it ended, in seconds since 1970.
        figures: Losses, accuracies, rates and speeds by name.
    """

    epoch: int
    moment: float
    figures: Mapping[str, float]


EpochHistory: TypeAlias = dict[
    str, tuple[EpochMetrics, ...]
]  # by series: "" is the training itself, "trial-003" one of a search


def read_epoch_history(paths: RunPaths) -> EpochHistory:
    """Return all epochs that count, each once, whatever attempts have run twice."""
    found: dict[str, dict[int, EpochMetrics]] = {}
    for line in read_lines(paths.metrics):
        found.setdefault("", {})[int(line["epoch"])] = _point(line)  # of an epoch that ran again the last line counts
    for event in read_lines(paths.trials):
        if event.get("event") == "epoch":  # and of a trial's the first, as its ledger says
            found.setdefault(f"trial-{event['trial']:03d}", {}).setdefault(int(event["epoch"]), _point(event))
    return {series: tuple(points[epoch] for epoch in sorted(points)) for series, points in found.items()}


def _point(line: Mapping[str, Any]) -> EpochMetrics:
    figures = {
        name: float(value)
        for name, value in line.items()
        if name not in NO_FIGURES and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return EpochMetrics(int(line["epoch"]), datetime.fromisoformat(line["time"]).timestamp(), figures)
