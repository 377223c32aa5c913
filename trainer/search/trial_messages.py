"""The messages between the controller of a search and its trials. Imports neither torch nor ray."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainer.errors import InfrastructureError, StorageFull, infrastructure_fault, storage_full
from trainer.specs.search_space import Config

Outcome = Literal["paused", "finished", "failed", "lost"]
FULL = "full"

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
    """How a trial ended, or that it paused, or was lost: its storage failed, which ends the attempt, not the trial.

    Attributes:
        why: Why it finished: "epochs" (it ran all), "patience" (early stopping) or "rung" (ASHA); "paused" for one
            that an earlier search left unfinished. Of a lost one: FULL if its storage is. None otherwise.
        error: Why it failed or was lost, in one line; None unless it did or was.
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
    def lost_by(cls, error: Exception) -> "TrialEnd | None":
        """Return that a trial was lost by an error; None for an error that another attempt would not avoid."""
        if fault := infrastructure_fault(error):
            return cls(outcome="lost", error=str(fault))
        if full := storage_full(error):
            return cls(outcome="lost", why=FULL, error=str(full))
        return None

    def raise_if_lost(self) -> None:
        """Raise the error by which a trial was lost.

        Raises:
            InfrastructureError: Another attempt may succeed.
            StorageFull: The storage is full.
        """
        if self.outcome == "lost":
            raise StorageFull(self.error) if self.why == FULL else InfrastructureError(self.error)

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> "TrialEnd":
        """Return the end in a "finished", "failed" or "paused" event."""
        return cls(outcome=event["event"], why=event.get("why"), error=event.get("error"))

    def to_json(self) -> dict[str, Any]:
        """Return the event."""
        details = {"why": self.why, "error": self.error}
        return {"event": self.outcome} | {name: value for name, value in details.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrialStep:
    """What a trial sends to the controller at once: the epochs since the last message, and its end if it ended."""

    reports: tuple[TrialReport, ...] = ()
    end: TrialEnd | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the trial was lost."""
        return self.end is not None and self.end.outcome == "lost"

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


def undefined_metric(metric: str, where: str = "on the valid split") -> str:
    """Return the error of a trial whose metric is undefined on the images that rank trials."""
    return f"{metric} is undefined {where}; choose another --metric"
