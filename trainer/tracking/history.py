"""The metrics of each epoch, read back from the files of a run. Imports neither torch nor ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from cluster.files import read_lines
from cluster.run_paths import RunPaths

NOT_METRICS = ("epoch", "epochs", "attempt", "trial")


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of one epoch.

    Attributes:
        epoch: Number of the epoch, from 1.
        timestamp: When the epoch ended, in seconds since 1970.
        metrics: Losses, accuracies, learning rates and speeds by name.
    """

    epoch: int
    timestamp: float
    metrics: Mapping[str, float]


EpochHistory: TypeAlias = dict[str, tuple[EpochMetrics, ...]]  # key "": the run itself; key "trial-003": trial 3


def read_epoch_history(paths: RunPaths) -> EpochHistory:
    """Return the metrics of each epoch once, also where a later attempt repeated epochs."""
    found: dict[str, dict[int, EpochMetrics]] = {}
    for line in read_lines(paths.metrics):
        found.setdefault("", {})[int(line["epoch"])] = _epoch_metrics(line)  # the last line of a repeated epoch counts
    for event in read_lines(paths.trials):
        if event.get("event") == "epoch":  # the first report of a trial's epoch counts, as in the trial journal
            epochs = found.setdefault(f"trial-{event['trial']:03d}", {})
            epochs.setdefault(int(event["epoch"]), _epoch_metrics(event))
    return {series: tuple(epochs[epoch] for epoch in sorted(epochs)) for series, epochs in found.items()}


def _epoch_metrics(line: Mapping[str, Any]) -> EpochMetrics:
    metrics = {
        name: float(value)
        for name, value in line.items()
        if name not in NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return EpochMetrics(int(line["epoch"]), datetime.fromisoformat(line["time"]).timestamp(), metrics)
