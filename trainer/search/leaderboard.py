"""The leaderboard of a search: a row for each trial. Imports neither torch nor ray."""

from collections.abc import Callable
from typing import Any

from trainer.search.trials import TrialTable
from trainer.specs.search_space import SEARCHED, Config


def leaderboard(
    table: TrialTable,
    best_folder: str | None = None,
    *,
    published: int | None = None,
    is_default: Callable[[Config], bool] = lambda _: False,
) -> list[dict[str, Any]]:
    """Return one row per trial as `nightshift trials --json` prints it, the best first.

    Args:
        table: The trials.
        best_folder: Where the model of the search is published, if it is.
        published: Number of the trial whose model that is; None means the best.
        is_default: Whether a configuration is that of the default trial.
    """
    best = table.best()
    number = best.trial if published is None and best is not None else published
    rows = []
    for trial in table.ranked():
        top = trial.best(table.metric)
        rows.append(
            {
                "trial": trial.number,
                **{name: trial.config[name] for name in SEARCHED if name in trial.config},
                "metric": None if top is None else top.value,
                "spread": None if top is None else top.report.spread,
                "best_epoch": None if top is None else top.epoch,
                "epochs": trial.epochs,
                "seconds": round(trial.seconds, 3),
                "state": trial.state,
                "why": trial.why,
                "error": trial.error,
                "checkpoint": best_folder if trial.number == number else None,
                "default": is_default(trial.config),
            }
        )
    return rows
