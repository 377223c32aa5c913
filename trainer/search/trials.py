"""The trials of a search: the messages they send, and the table that the trial journal adds up to.

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
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cluster.attempt_lines import AttemptLines, read_attempt_lines
from trainer.specs.metric import loss_of
from trainer.specs.search_space import Config

State = Literal["running", "paused", "finished", "failed"]
Outcome = Literal["paused", "finished", "failed"]

RESTARTS = 2  # of a trial's process within one attempt; when it dies once more, the trial has failed
METRICS = ("train_loss", "valid_loss", "valid_accuracy", "valid_auroc", "seconds")  # as `metrics.jsonl` names them


@dataclass(frozen=True, kw_only=True)
class TrialAssignment:
    """A trial that the controller starts.

    Attributes:
        trial: Its number.
        config: The value of every option that a search can vary.
        value_to_beat: Best value of the search so far; the trial saves a model only for a better one.
    """

    trial: int
    config: Config
    value_to_beat: float | None

    @classmethod
    def from_tune(cls, config: Mapping[str, Any]) -> "TrialAssignment":
        """Return the assignment in a config of Ray Tune."""
        return cls(trial=config["trial"], config=config["config"], value_to_beat=config["value_to_beat"])

    def to_tune(self) -> dict[str, Any]:
        """Return the config that Ray Tune passes to the trial's process."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrialReport:
    """One epoch of a trial.

    Attributes:
        value: The metric that ranks; the mean over the repeats.
        spread: Standard deviation of `value` over the repeats, or of the metric over the folds; None for a single one.
        candidate: Folder of the epoch's model below `checkpoints/`; None where it was not saved.
        seconds: Duration of the epoch, of all repeats together.
    """

    epoch: int
    value: float
    spread: float | None = None
    candidate: str | None = None
    train_loss: float | None = None
    valid_loss: float | None = None
    valid_accuracy: float | None = None
    valid_auroc: float | None = None
    seconds: float | None = None

    @classmethod
    def of_repeats(
        cls, lines: Sequence[Mapping[str, Any]], *, epoch: int, values: Sequence[float], candidate: str | None
    ) -> "TrialReport":
        """Return the report of an epoch: means over the repeats, and the sum of their seconds.

        Args:
            lines: The epoch's line of `metrics.jsonl`, of each repeat. A metric that one of them lacks is None.
            epoch: Its number.
            values: The metric that ranks, of each repeat.
            candidate: See the class.
        """
        metrics = dict[str, float | None]()
        for name in METRICS:
            known = [line[name] for line in lines if line.get(name) is not None]
            average = sum if name == "seconds" else statistics.fmean
            metrics[name] = average(known) if len(known) == len(lines) else None
        spread = statistics.pstdev(values) if len(values) > 1 else None
        return cls(epoch=epoch, value=statistics.fmean(values), spread=spread, candidate=candidate, **metrics)

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> "TrialReport":
        """Return the report in an "epoch" event, whose other keys are ignored."""
        optional = {name: event.get(name) for name in ("spread", "candidate", *METRICS)}
        return cls(epoch=int(event["epoch"]), value=float(event["value"]), **optional)

    def to_json(self) -> dict[str, Any]:
        """Return what an "epoch" event says of it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrialEnd:
    """How a trial ended, or that it paused.

    Attributes:
        why: Why it finished: "epochs" (it ran all), "patience" (early stopping) or "rung" (ASHA); "paused" for one
            that an earlier search left unfinished. None unless it finished.
        error: Why it failed, in one line; None unless it failed.
    """

    outcome: Outcome
    why: str | None = None
    error: str | None = None

    @classmethod
    def finished(cls, why: str) -> "TrialEnd":
        """Return the end of a trial that finished."""
        return cls(outcome="finished", why=why)

    @classmethod
    def failed(cls, error: str) -> "TrialEnd":
        """Return the end of a trial that failed; line breaks in `error` become spaces."""
        return cls(outcome="failed", error=" ".join(error.split()))

    @classmethod
    def paused(cls) -> "TrialEnd":
        """Return that a trial saved a checkpoint and waits."""
        return cls(outcome="paused")

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> "TrialEnd":
        """Return the end in a "finished", "failed" or "paused" event."""
        return cls(outcome=event["event"], why=event.get("why"), error=event.get("error"))

    def to_json(self) -> dict[str, Any]:
        """Return the event."""
        details = {"why": self.why, "error": self.error}
        return {"event": self.outcome} | {name: value for name, value in details.items() if value is not None}


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
    has_numbers = all(number is None or _is_number(number) for number in numbers)
    is_text = isinstance(event.get("candidate"), str | None)
    return (
        type(event["epoch"]) is int and event["epoch"] > 0 and math.isfinite(event["value"]) and has_numbers and is_text
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str | None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def undefined_metric(metric: str, where: str = "on the valid split") -> str:
    """Return the error of a trial whose metric is undefined on the images that rank trials."""
    return f"{metric} is undefined {where}; choose another --metric"


@dataclass(frozen=True, kw_only=True)
class TrialStep:
    """What a trial sends to the controller at once: the epochs since the last message, and its end if it ended."""

    reports: tuple[TrialReport, ...] = ()
    end: TrialEnd | None = None

    @classmethod
    def from_tune(cls, result: Mapping[str, Any]) -> "TrialStep":
        """Return the message in a result of Ray Tune."""
        ends = [TrialEnd.from_json(end) for end in result["end"]]
        reports = tuple(TrialReport.from_json(report) for report in result["reports"])
        return cls(reports=reports, end=ends[0] if ends else None)

    def to_tune(self) -> dict[str, Any]:
        """Return the result that Ray Tune passes to the scheduler; "done" tells it that the trial ended."""
        return {
            "reports": [report.to_json() for report in self.reports],
            "end": [] if self.end is None else [self.end.to_json()],  # a list: Tune flattens nested dictionaries
            "done": self.end is not None,
        }


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
