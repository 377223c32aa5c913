"""The metrics of each epoch, read back from the files of a run. Imports neither torch nor ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from cluster.attempt_lines import AttemptLines, read_attempt_lines
from cluster.run_paths import RunPaths

NOT_METRICS = ("epoch", "epochs", "attempt", "trial")
NUMBERS = ("epochs", "train_loss", "valid_loss", "valid_accuracy", "valid_auroc", "lr", "seconds", "images_per_second")


@dataclass(frozen=True)
class LoggedEpoch:
    """The metrics of one epoch, as `metrics.jsonl` has them.

    Attributes:
        epoch: Number of the epoch, from 1.
        timestamp: When the epoch ended, in seconds since 1970.
        metrics: Losses, accuracies, learning rates and speeds by name.
    """

    epoch: int
    timestamp: float
    metrics: Mapping[str, float]


EpochHistory: TypeAlias = dict[str, tuple[LoggedEpoch, ...]]  # key "": the run itself; key "trial-003": trial 3


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_epoch_line(line: Mapping[str, Any]) -> bool:
    """Whether a line of `metrics.jsonl` has the epoch's number, and numbers where its readers need them."""
    is_numeric = all(is_number(line.get(name)) or line.get(name) is None for name in NUMBERS)
    return type(line["epoch"]) is int and line["epoch"] > 0 and is_numeric and _timestamp(line) is not None


def read_metrics(path: Path) -> AttemptLines:
    """Return the lines of `metrics.jsonl` that count, and which are damaged.

    Raises:
        StorageError: The file cannot be read.
    """
    return read_attempt_lines(path, is_epoch_line)


def epoch_lines(found: AttemptLines) -> list[dict[str, Any]]:
    """Return the line of each epoch, in order.

    An epoch that an attempt trained again after it resumed has the line of that attempt.
    """
    by_epoch = {line["epoch"]: line for line in found.lines}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def read_epoch_lines(path: Path) -> list[dict[str, Any]]:
    """Return the line of each epoch in `metrics.jsonl`, in order, without the damaged lines.

    Raises:
        StorageError: The file cannot be read.
    """
    return epoch_lines(read_metrics(path))


def read_epoch_history(paths: RunPaths) -> EpochHistory:
    """Return the metrics of each epoch once, also where a later attempt repeated epochs."""
    found: dict[str, dict[int, LoggedEpoch]] = {}
    for line in read_epoch_lines(paths.metrics):
        found.setdefault("", {})[line["epoch"]] = _epoch_metrics(line)
    for event in read_attempt_lines(paths.trials, _is_trial_epoch).lines:
        if event["event"] == "epoch":  # the first report of a trial's epoch counts, as in the trial journal
            epochs = found.setdefault(f"trial-{event['trial']:03d}", {})
            epochs.setdefault(int(event["epoch"]), _epoch_metrics(event))
    return {series: tuple(epochs[epoch] for epoch in sorted(epochs)) for series, epochs in found.items()}


def _epoch_metrics(line: Mapping[str, Any]) -> LoggedEpoch:
    metrics = {name: float(value) for name, value in line.items() if name not in NOT_METRICS and is_number(value)}
    return LoggedEpoch(int(line["epoch"]), _timestamp(line), metrics)


def _is_trial_epoch(event: Mapping[str, Any]) -> bool:
    """Whether an event of a trial journal can be read here: an epoch with its numbers, or any other event."""
    if event["event"] != "epoch":
        return True
    return type(event["trial"]) is int and type(event["epoch"]) is int and _timestamp(event) is not None


def _timestamp(line: Mapping[str, Any]) -> float:
    """Return when a line was written, 0 where it does not say.

    Raises:
        TypeError, ValueError: Its time is damaged.
    """
    return datetime.fromisoformat(line["time"]).timestamp() if "time" in line else 0.0
