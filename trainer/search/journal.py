"""The trial journal, `trials.jsonl`: append-only; each line is synced to disk before anything depends on it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cluster.errors import StorageError
from cluster.files import read_json
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from trainer.errors import SpecError
from trainer.evaluation.trial_outputs import copy_trial_outputs
from trainer.search.trial_messages import TrialAssignment, TrialEnd, TrialReport
from trainer.search.trials import Trial, TrialTable, read_trial_events

logger = logging.getLogger(__name__)


@dataclass
class TrialJournal:
    """The file, and the table that its lines add up to.

    Every method that writes raises LeaseLost when a newer attempt owns the run. `extended_from` is the id of the
    earlier search that an event is copied from.

    Attributes:
        began: When the first attempt of the search began.
    """

    lease: Lease
    table: TrialTable
    began: datetime

    @classmethod
    def opened(cls, lease: Lease, metric: str, now: datetime) -> "TrialJournal":
        """Record that this attempt begins, and then read what earlier attempts wrote.

        In this order: what an earlier attempt appends between the two is left out, here and by every later reader.
        """
        lease.append_line(lease.paths.trials, {"event": "opened", "time": now.astimezone(UTC).isoformat()})
        found = read_trial_events(lease.paths.trials)
        if found.warning:
            logger.warning("%s", found.warning)
        times = [datetime.fromisoformat(event["time"]) for event in found.lines if event["event"] == "opened"]
        return cls(lease, TrialTable.fold(found.lines, metric), times[0])

    def start(self, assignment: TrialAssignment, now: datetime, extended_from: str | None = None) -> None:
        """Record that a trial starts."""
        event = {"event": "started", "trial": assignment.trial, "config": assignment.config}
        self._append(event, now, extended_from)

    def report(self, trial: int, report: TrialReport, now: datetime, extended_from: str | None = None) -> None:
        """Record an epoch."""
        self._append({"event": "epoch", "trial": trial, **report.to_json()}, now, extended_from)

    def end(self, trial: int, end: TrialEnd, now: datetime, extended_from: str | None = None) -> None:
        """Record that a trial finished, failed or paused."""
        self._append({**end.to_json(), "trial": trial}, now, extended_from)

    def _append(self, event: Mapping[str, Any], now: datetime, extended_from: str | None = None) -> None:
        source = {} if extended_from is None else {"from": extended_from}
        line = {**event, **source, "time": now.astimezone(UTC).isoformat()}
        self.lease.append_line(self.lease.paths.trials, line)
        self.table.add(line)


def copy_trials(journal: TrialJournal, earlier: RunPaths, now: datetime) -> None:
    """Copy the trials of an earlier search into the journal, as the first ones; idempotent, also after a kill.

    A trial that had paused when that search ended counts as finished: its model may be the best that was published.

    Raises:
        SpecError: The earlier search does not exist.
    """
    try:
        metric = str(read_json(earlier.spec)["best_by"])
    except (StorageError, KeyError) as error:
        raise SpecError(
            f"--extend {earlier.run_id}: this storage has no such search; `nightshift list --kind search` shows them"
        ) from error
    for trial in TrialTable.fold(read_trial_events(earlier.trials).lines, metric).extendable:
        known = journal.table.trials.get(trial.number)
        if known is None or known.ended is None:
            copy_trial_outputs(earlier.checkpoints, trial.number, journal.lease.paths.checkpoints, journal.lease)
            _copy(trial, journal, earlier.run_id, now)


def _copy(trial: Trial, journal: TrialJournal, run_id: str, now: datetime) -> None:
    assignment = TrialAssignment(trial=trial.number, config=trial.config, value_to_beat=None)
    journal.start(assignment, now, run_id)
    for record in sorted(trial.reports.values(), key=lambda record: record.sequence):
        # The model of an epoch stays with the earlier search, which has published that of its best.
        journal.report(trial.number, replace(record.report, candidate=None), now, run_id)
    failed = trial.state == "failed"
    end = TrialEnd.failed(trial.error or "") if failed else TrialEnd.finished(trial.why or "paused")
    journal.end(trial.number, end, now, run_id)
