"""The ledger of a search, `trials.jsonl`: every line is synced before anything is done that builds on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.errors import StorageError
from cluster.files import append_line, read_json, read_lines
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from trainer.errors import SpecError
from trainer.search.trials import Trial, TrialTable

REPORTED = (
    "epoch",
    "value",
    "spread",
    "candidate",
    "train_loss",
    "valid_loss",
    "valid_accuracy",
    "valid_auroc",
    "seconds",
)


@dataclass
class TrialJournal:
    """The file and the table that it amounts to.

    Attributes:
        began: When the first attempt at the search began.
    """

    lease: Lease
    table: TrialTable
    began: datetime

    @classmethod
    def opened(cls, lease: Lease, metric: str, now: datetime) -> "TrialJournal":
        """Read what earlier attempts wrote, and note that this one begins.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        events = list(read_lines(lease.paths.trials))
        opened = [event for event in events if event.get("event") == "opened"]
        began = datetime.fromisoformat(opened[0]["time"]) if opened else now.astimezone(UTC)
        journal = cls(lease, TrialTable.fold(events, metric), began)
        journal.append({"event": "opened"}, now)
        return journal

    def append(self, event: Mapping[str, Any], now: datetime) -> None:
        """Write an event and take it into the table.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        self.lease.check()
        stamped = {**event, "attempt": self.lease.attempt, "time": now.astimezone(UTC).isoformat()}
        append_line(self.lease.paths.trials, stamped)
        self.table.add(stamped)


def read_table(paths: RunPaths, metric: str) -> TrialTable:
    """Return the trials of a search as its ledger tells them at this moment."""
    return TrialTable.fold(read_lines(paths.trials), metric)


def take_over(journal: TrialJournal, before: RunPaths, now: datetime) -> None:
    """Copy the trials of an earlier search into the ledger, as the first ones; safe to run again after a kill.

    One that had paused when that search ended counts as it stood: its model may be the best that was published.

    Raises:
        SpecError: The earlier search is not there.
    """
    try:
        metric = str(read_json(before.spec)["best_by"])
    except (StorageError, KeyError) as error:
        raise SpecError(f"--extend {before.run_id}: there is no such search in this storage") from error
    for trial in read_table(before, metric).reported:
        known = journal.table.trials.get(trial.number)
        if known is None or known.ended is None:
            _copy(trial, journal, before.run_id, now)


def _copy(trial: Trial, journal: TrialJournal, run_id: str, now: datetime) -> None:
    common = {"trial": trial.number, "from": run_id}
    journal.append({"event": "started", "config": trial.config, **common}, now)
    for report in sorted(trial.reports.values(), key=lambda report: report.sequence):
        figures = {name: report.figures.get(name) for name in REPORTED}
        journal.append({"event": "epoch", **figures, "candidate": None, **common}, now)
    if trial.state == "failed":
        journal.append({"event": "failed", "error": trial.error, **common}, now)
    else:
        journal.append({"event": "finished", "why": trial.why or "paused", **common}, now)
