"""The ledger of a search, `trials.jsonl`: every line is synced before anything is done that builds on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.files import append_line, read_lines
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from trainer.search.trials import TrialTable


@dataclass
class SearchLedger:
    """The file and the table that it amounts to.

    Attributes:
        began: When the first attempt at the search began.
    """

    lease: Lease
    table: TrialTable
    began: datetime

    @classmethod
    def opened(cls, lease: Lease, metric: str, now: datetime) -> "SearchLedger":
        """Read what earlier attempts wrote, and note that this one begins.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        events = list(read_lines(lease.paths.trials))
        opened = [event for event in events if event.get("event") == "opened"]
        began = datetime.fromisoformat(opened[0]["time"]) if opened else now.astimezone(UTC)
        ledger = cls(lease, TrialTable.fold(events, metric), began)
        ledger.append({"event": "opened"}, now)
        return ledger

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
