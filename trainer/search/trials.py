"""The trials of a search as its ledger tells them. Pure: a fold over events; imports neither torch nor ray.

The ledger `trials.jsonl` is the truth. Its lines are events, in the order in which they happened:

    started   {"trial", "config"}                 a trial begins, or goes on in a later attempt
    epoch     {"trial", "epoch", "value", ...}    an epoch of it ended; `value` is the metric that ranks
    paused    {"trial"}                           it saved a checkpoint and waits
    finished  {"trial", "why"}                    it ran all epochs, or was ended early
    failed    {"trial", "error"}                  it cannot go on; one line says why

A trial that died and went on from a checkpoint reports some epochs twice; the first report of an epoch counts.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.specs.metric import loss_of
from trainer.specs.search_space import SEARCHED, Config

State = Literal["running", "paused", "finished", "failed"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One epoch of one trial.

    Attributes:
        sequence: Place among all reports of the search; of two equal values the earlier is the better.
        value: The metric that ranks.
        figures: The whole event, with losses, seconds and spread.
    """

    sequence: int
    trial: int
    epoch: int
    value: float
    figures: Mapping[str, Any]


@dataclass
class Trial:
    """One configuration and what came of it.

    Attributes:
        ended: Place among the trials in the order in which they ended; None while it has not.
        why: Why it finished: "epochs", "rung" or "patience"; "paused" where a later search took it over unfinished.
    """

    number: int
    config: Config
    state: State = "running"
    reports: dict[int, Report] = field(default_factory=dict)
    ended: int | None = None
    why: str | None = None
    error: str | None = None

    @property
    def is_taken_over(self) -> bool:
        """Whether it ran in an earlier search, which this one extends."""
        return any(report.figures.get("from") for report in self.reports.values())

    @property
    def epochs(self) -> int:
        """Epochs behind."""
        return max(self.reports, default=0)

    @property
    def seconds(self) -> float:
        """Time that its epochs took."""
        return sum(float(report.figures.get("seconds", 0.0)) for report in self.reports.values())

    def best(self, metric: str) -> Report | None:
        """Return its best epoch, None before the first."""
        return best_report(self.reports.values(), metric)


@dataclass
class TrialTable:
    """The trials of one search; `add` the events of its ledger in order.

    Attributes:
        metric: Name of the metric that ranks, which says whether high or low is good.
    """

    metric: str
    trials: dict[int, Trial] = field(default_factory=dict)
    _reports: int = 0
    _ends: int = 0

    @classmethod
    def fold(cls, events: Iterable[Mapping[str, Any]], metric: str) -> "TrialTable":
        """Return the table after all `events`; those of kinds it does not know are passed over."""
        table = cls(metric)
        for event in events:
            table.add(event)
        return table

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        kind, number = event.get("event"), event.get("trial")
        if kind == "started" and isinstance(number, int):
            trial = self.trials.setdefault(number, Trial(number, dict(event["config"])))
            trial.state = "running" if trial.ended is None else trial.state
        elif number in self.trials:
            self._go_on(self.trials[number], str(kind), event)

    def _go_on(self, trial: Trial, kind: str, event: Mapping[str, Any]) -> None:
        if trial.ended is not None:  # a late line of an attempt that had lost the run
            return
        if kind == "epoch" and event["epoch"] not in trial.reports:
            self._reports += 1
            trial.reports[event["epoch"]] = Report(
                sequence=self._reports,
                trial=trial.number,
                epoch=event["epoch"],
                value=float(event["value"]),
                figures=event,
            )
        elif kind == "paused":
            trial.state = "paused"
        elif kind in ("finished", "failed"):
            self._ends += 1
            trial.ended = self._ends
            trial.state = "finished" if kind == "finished" else "failed"
            trial.why, trial.error = event.get("why"), event.get("error")

    @property
    def ended(self) -> list[Trial]:
        """The trials that finished or failed, in the order in which they did."""
        done = [trial for trial in self.trials.values() if trial.ended is not None]
        return sorted(done, key=lambda trial: trial.ended or 0)

    @property
    def reported(self) -> list[Trial]:
        """The trials that a later search can take over: those that ended, and those that paused after an epoch."""
        return self.ended + [trial for trial in self.unfinished if trial.reports]

    @property
    def unfinished(self) -> list[Trial]:
        """The trials that began and have not ended, by number: they go on first."""
        return sorted((t for t in self.trials.values() if t.ended is None), key=lambda trial: trial.number)

    @property
    def finished(self) -> int:
        """How many trials finished."""
        return sum(trial.state == "finished" for trial in self.trials.values())

    @property
    def failed(self) -> int:
        """How many trials failed."""
        return sum(trial.state == "failed" for trial in self.trials.values())

    def best(self) -> Report | None:
        """Return the best epoch of all trials, failed ones included up to where they came; of equals the earlier."""
        return best_report((r for trial in self.trials.values() for r in trial.reports.values()), self.metric)

    def reports(self) -> list[Report]:
        """Return all reports in the order in which they came."""
        every = [report for trial in self.trials.values() for report in trial.reports.values()]
        return sorted(every, key=lambda report: report.sequence)

    def ranked(self) -> list[Trial]:
        """Return the trials, the best first; those without an epoch last."""

        def place(trial: Trial) -> tuple[float, int]:
            best = trial.best(self.metric)
            return (math.inf, trial.number) if best is None else (loss_of(best.value, self.metric), best.sequence)

        return sorted(self.trials.values(), key=place)


def best_report(reports: Iterable[Report], metric: str) -> Report | None:
    """Return the best of `reports`; of equals the earlier."""
    return min(reports, key=lambda report: (loss_of(report.value, metric), report.sequence), default=None)


def leaderboard(table: TrialTable, best_folder: str | None = None) -> list[dict[str, Any]]:
    """Return a row a trial as `nightshift trials --json` prints it, the best first.

    Args:
        table: The trials.
        best_folder: Where the best trial's model is published, if it is.
    """
    best = table.best()
    rows = []
    for trial in table.ranked():
        top = trial.best(table.metric)
        rows.append(
            {
                "trial": trial.number,
                **{name: trial.config[name] for name in SEARCHED if name in trial.config},
                "metric": None if top is None else top.value,
                "spread": None if top is None else top.figures.get("spread"),
                "best_epoch": None if top is None else top.epoch,
                "epochs": trial.epochs,
                "seconds": round(trial.seconds, 3),
                "state": trial.state,
                "why": trial.why,
                "error": trial.error,
                "checkpoint": best_folder if best is not None and best.trial == trial.number else None,
            }
        )
    return rows
