"""The trials of a search: the table that the trial journal adds up to.

Imports neither torch nor ray. The trial journal `trials.jsonl` is the source of truth. Each line is an event, in the
order in which the events happened:

    opened    {}                                  an attempt of the search began
    started   {"trial", "config"}                 a trial began, or continued in a later attempt
    epoch     {"trial", "epoch", "value", ...}    it finished an epoch; `value` is the metric that ranks
    paused    {"trial"}                           it saved a checkpoint and waits for the next attempt
    finished  {"trial", "why"}                    it ran all epochs, or was stopped early
    failed    {"trial", "error"}                  it cannot continue; `error` is one line

An event with "from" was copied from the earlier search of that id, which this search extends. A trial whose process
died and resumed from a checkpoint reports some epochs twice; the first report of an epoch counts.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cluster.attempt_lines import AttemptLines, read_attempt_lines
from trainer.search.trial_messages import METRICS, TrialEnd, TrialReport
from trainer.specs.metric import loss_of
from trainer.specs.search_space import Config
from trainer.tracking.history import is_number

State = Literal["running", "paused", "finished", "failed"]


def read_trial_events(path: Path) -> AttemptLines:
    """Return the events of a trial journal.

    Raises:
        StorageError: The file cannot be read.
    """
    return read_attempt_lines(path, is_trial_event)


def is_trial_event(event: Mapping[str, Any]) -> bool:
    """Whether an event has what `TrialTable` and its readers need of its kind; unknown kinds are ignored later.

    Raises:
        KeyError, TypeError, ValueError: It has not.
    """
    kind = event["event"]
    if "time" in event:
        datetime.fromisoformat(event["time"])
    if kind == "opened":
        return "time" in event
    if kind not in ("started", "epoch", "paused", "finished", "failed"):
        return isinstance(kind, str)
    if type(event["trial"]) is not int or not isinstance(event.get("from", ""), str):
        return False
    if kind == "started":
        return isinstance(event["config"], dict) and all(_is_plain(value) for value in event["config"].values())
    if kind == "epoch":
        return _is_report(event)
    return all(isinstance(event.get(name), str | None) for name in ("why", "error"))


def _is_report(event: Mapping[str, Any]) -> bool:
    numbers = [event.get(name) for name in ("spread", *METRICS)]
    has_numbers = all(number is None or is_number(number) for number in numbers)
    is_text = isinstance(event.get("candidate"), str | None)
    return (
        type(event["epoch"]) is int and event["epoch"] > 0 and math.isfinite(event["value"]) and has_numbers and is_text
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str | None)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """A report as the trial journal has it.

    Attributes:
        sequence: Position among all reports of the search; of two equal values the earlier is the better.
        recorded_at: When it was written; None where the event has no time.
        extended_from: Id of the earlier search that it was copied from; None for the search's own.
    """

    sequence: int
    trial: int
    report: TrialReport
    recorded_at: datetime | None = None
    extended_from: str | None = None

    @property
    def epoch(self) -> int:
        """Number of the epoch."""
        return self.report.epoch

    @property
    def value(self) -> float:
        """The metric that ranks."""
        return self.report.value


@dataclass
class Trial:
    """One configuration and its results.

    Attributes:
        reports: By epoch.
        ended: Position among the trials in the order in which they ended; None while it has not ended.
        why: See `TrialEnd`.
        error: See `TrialEnd`.
        extended_from: Id of the earlier search that it ran in; None for the search's own.
        started_at: When it first started; None where the journal has no time. A copy has the time of copying.
        ended_at: When it ended, like `started_at`.
    """

    number: int
    config: Config
    state: State = "running"
    reports: dict[int, EpochRecord] = field(default_factory=dict)
    ended: int | None = None
    why: str | None = None
    error: str | None = None
    extended_from: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def epochs(self) -> int:
        """Number of epochs finished."""
        return max(self.reports, default=0)

    @property
    def seconds(self) -> float:
        """Duration of its epochs."""
        return sum(record.report.seconds or 0.0 for record in self.reports.values())

    @property
    def was_stopped_early(self) -> bool:
        """Whether ASHA stopped it, or an earlier search left it unfinished: its best value is not comparable."""
        return self.why in ("rung", "paused")

    def best(self, metric: str) -> EpochRecord | None:
        """Return its best epoch, None before the first."""
        return best_of(self.reports.values(), metric)


@dataclass
class TrialTable:
    """The trials of one search; `add` the events of its journal in order.

    Attributes:
        metric: Name of the metric that ranks, which determines whether high or low is better.
    """

    metric: str
    trials: dict[int, Trial] = field(default_factory=dict)
    _reports: int = 0
    _ends: int = 0

    @classmethod
    def fold(cls, events: Iterable[Mapping[str, Any]], metric: str) -> "TrialTable":
        """Return the table after all `events`; events of unknown kinds are ignored."""
        table = cls(metric)
        for event in events:
            table.add(event)
        return table

    def add(self, event: Mapping[str, Any]) -> None:
        """Apply one event of the journal."""
        kind, number = event.get("event"), event.get("trial")
        if kind == "started" and isinstance(number, int):
            trial = self.trials.setdefault(number, Trial(number, dict(event["config"]), started_at=_time(event)))
            trial.state = "running" if trial.ended is None else trial.state
        elif number in self.trials and self.trials[number].ended is None:  # else a late line of a superseded attempt
            if kind == "epoch":
                self._add_report(self.trials[number], event)
            elif kind in ("paused", "finished", "failed"):
                self._add_end(self.trials[number], TrialEnd.from_json(event), _time(event))

    def _add_report(self, trial: Trial, event: Mapping[str, Any]) -> None:
        report = TrialReport.from_json(event)
        if report.epoch in trial.reports:
            return
        self._reports += 1
        trial.extended_from = event.get("from")
        trial.reports[report.epoch] = EpochRecord(
            sequence=self._reports,
            trial=trial.number,
            report=report,
            recorded_at=_time(event),
            extended_from=trial.extended_from,
        )

    def _add_end(self, trial: Trial, end: TrialEnd, time: datetime | None) -> None:
        if end.outcome == "lost":  # never written
            return
        trial.state = end.outcome
        if end.outcome != "paused":
            self._ends += 1
            trial.ended, trial.why, trial.error, trial.ended_at = self._ends, end.why, end.error, time

    @property
    def ended(self) -> list[Trial]:
        """The trials that finished or failed, in the order in which they did."""
        done = [trial for trial in self.trials.values() if trial.ended is not None]
        return sorted(done, key=lambda trial: trial.ended or 0)

    @property
    def extendable(self) -> list[Trial]:
        """The trials that a later search can copy: those that ended, and those that paused after an epoch."""
        return self.ended + [trial for trial in self.unfinished if trial.reports]

    @property
    def unfinished(self) -> list[Trial]:
        """The trials that began and have not ended, by number."""
        return sorted((t for t in self.trials.values() if t.ended is None), key=lambda trial: trial.number)

    @property
    def epochs(self) -> int:
        """How many epochs all trials have finished."""
        return sum(trial.epochs for trial in self.trials.values())

    @property
    def finished(self) -> int:
        """How many trials finished."""
        return sum(trial.state == "finished" for trial in self.trials.values())

    @property
    def failed(self) -> int:
        """How many trials failed."""
        return sum(trial.state == "failed" for trial in self.trials.values())

    def best(self) -> EpochRecord | None:
        """Return the best epoch of all trials, the epochs of failed ones included; of equals the earlier."""
        return best_of((r for trial in self.trials.values() for r in trial.reports.values()), self.metric)

    def reports(self) -> list[EpochRecord]:
        """Return all reports in the order in which they were written."""
        every = [report for trial in self.trials.values() for report in trial.reports.values()]
        return sorted(every, key=lambda report: report.sequence)

    def ranked(self) -> list[Trial]:
        """Return the trials, the best first; those without an epoch last."""

        def rank(trial: Trial) -> tuple[float, int]:
            best = trial.best(self.metric)
            return (math.inf, trial.number) if best is None else (loss_of(best.value, self.metric), best.sequence)

        return sorted(self.trials.values(), key=rank)


def _time(event: Mapping[str, Any]) -> datetime | None:
    if "time" not in event:
        return None
    time = datetime.fromisoformat(event["time"])
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def best_of(records: Iterable[EpochRecord], metric: str) -> EpochRecord | None:
    """Return the best of `records`; of equals the earlier."""
    return min(records, key=lambda record: (loss_of(record.value, metric), record.sequence), default=None)
