"""The trials that a search takes over from the one it extends."""

from datetime import datetime

from cluster.errors import StorageError
from cluster.files import read_json
from cluster.run_paths import RunPaths
from trainer.errors import SpecError
from trainer.search.controller import TOLD
from trainer.search.journal import SearchLedger, read_table
from trainer.search.trials import Trial


def take_over(ledger: SearchLedger, before: RunPaths, now: datetime) -> None:
    """Copy the trials of an earlier search into the ledger, as the first ones; safe to run again after a kill.

    One that had paused when that search ended counts as it stood: its model may be the best that was published.

    Raises:
        SpecError: The earlier search is not there.
    """
    try:
        metric = str(read_json(before.spec)["best_by"])
    except (StorageError, KeyError) as error:
        raise SpecError(f"--extend {before.run_id}: there is no such search in this storage") from error
    for trial in read_table(before, metric).told:
        known = ledger.table.trials.get(trial.number)
        if known is None or known.ended is None:
            _copy(trial, ledger, before.run_id, now)


def _copy(trial: Trial, ledger: SearchLedger, run_id: str, now: datetime) -> None:
    common = {"trial": trial.number, "from": run_id}
    ledger.append({"event": "started", "config": trial.config, **common}, now)
    for report in sorted(trial.reports.values(), key=lambda report: report.order):
        figures = {name: report.figures.get(name) for name in TOLD}
        ledger.append({"event": "epoch", **figures, "candidate": None, **common}, now)
    if trial.state == "failed":
        ledger.append({"event": "failed", "error": trial.error, **common}, now)
    else:
        ledger.append({"event": "finished", "why": trial.why or "paused", **common}, now)
