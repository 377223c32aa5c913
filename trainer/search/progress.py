"""`progress.json` of a search: trials, epochs, the best so far."""

import time
from dataclasses import dataclass

from cluster.files import write_json
from trainer.attempt import Attempt
from trainer.progress import WRITE_SECONDS
from trainer.search.controller import Director


@dataclass
class SearchProgress:
    """Says about once a second where the search stands. An `epoch` of a search is a trial that ended."""

    attempt: Attempt
    director: Director
    images_per_epoch: int
    _written: float = float("-inf")

    def __post_init__(self) -> None:
        self._began, self._before = time.monotonic(), len(self.director.ledger.table.reports())

    def write_now_and_then(self) -> None:
        """Write the file unless it was written just now."""
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._written = time.monotonic()
            write_json(self.attempt.paths.progress, self._content())

    def _content(self) -> dict[str, object]:
        table, spec = self.director.ledger.table, self.director.spec
        done = sum(len(trial.reports) for trial in table.trials.values())
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = (done - self._before) / seconds
        best, ended = table.best(), len(table.ended)
        left = (spec.trials - ended) * (done / ended) if ended else None  # epochs, at the trials' mean so far
        return {
            "phase": "train",
            "epoch": ended,
            "epochs": spec.trials,
            "done": done * self.images_per_epoch,
            "total": spec.trials * spec.epochs * self.images_per_epoch,
            "images_per_second": round(speed * self.images_per_epoch, 1),
            "eta_seconds": None if left is None or not speed else round(left / speed, 1),
            "attempt": self.attempt.number,
            "trials": {"running": len(self.director.running), "finished": table.finished, "failed": table.failed},
            "best": None if best is None else {"trial": best.trial, "epoch": best.epoch, "value": best.value},
        }
