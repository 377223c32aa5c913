"""The search controller: which trial starts, which continues, which ends. Imports neither torch nor ray."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from trainer.search.asha import rungs_of, survives
from trainer.search.deadline import Clock, Deadline, seconds_of_trial
from trainer.search.journal import TrialJournal
from trainer.search.sampler import suggest
from trainer.search.trial_messages import TrialAssignment, TrialEnd, TrialReport, TrialStep
from trainer.specs import SearchSpec
from trainer.specs.search_space import Config

Ending = Literal["stop", "failures", "until", "max_duration", "window", "done"]


@dataclass
class SearchController:
    """Decides from the trial journal and the clock alone.

    Attributes:
        stop_reason: Returns why the whole run should stop, or None.
        running: Numbers of the trials that this attempt started and that have neither ended nor paused.
        paused: Numbers of the trials that paused in this attempt.
        closed: Start no more trials: the search itself has failed.
    """

    spec: SearchSpec
    journal: TrialJournal
    deadline: Deadline
    clock: Clock
    stop_reason: Callable[[], str | None]
    running: set[int] = field(default_factory=set)
    paused: set[int] = field(default_factory=set)
    closed: bool = False

    def next_trial(self) -> TrialAssignment | None:
        """Return the next trial to start, or None when no more trials start.

        Trials that an earlier attempt left unfinished go first. The start is in the journal before this returns.
        """
        if self.closed or self.must_pause() or self.too_many_failures():
            return None
        for trial in self.journal.table.unfinished:
            if trial.number not in self.running | self.paused and self._has_time_for(trial.epochs):
                return self._start(trial.number, trial.config)
        # --extend copies the ended trials of a cancelled search, whose numbers need not be the first.
        number = next(free for free in itertools.count() if free not in self.journal.table.trials)
        if number >= self.spec.trials or not self._has_time_for(0):
            return None
        varied = suggest(self.spec, number, self.journal.table)
        return self._start(number, self.spec.default_config | varied)

    def record(self, number: int, step: TrialStep) -> bool:
        """Write a trial's message to the journal and return whether the trial continues.

        Raises:
            InfrastructureError, TrainerError: The trial was lost; the next attempt continues it.
        """
        for report in step.reports:
            self._record_report(number, report)
        if step.end is not None:
            step.end.raise_if_lost()
            return self._end(number, step.end)
        if not step.reports:
            return True
        trial = self.journal.table.trials[number]
        record = trial.reports[step.reports[-1].epoch]
        is_judged = record.epoch in rungs_of(self.spec) and not self._is_compared(trial.config)
        if is_judged and not survives(record, self.journal.table):
            return self._end(number, TrialEnd.finished("rung"))
        return True

    def close(self) -> None:
        """Start no more trials: the search itself has failed."""
        self.closed = True
        self.running.clear()

    def has_work(self) -> bool:
        """Return whether there is a trial left that may start now."""
        return not (self.must_pause() or self.too_many_failures()) and self.left() > 0

    def must_pause(self) -> bool:
        """Return whether running trials must save a checkpoint and pause."""
        return self.stop_reason() is not None or self.deadline.is_over(self.clock())

    def too_many_failures(self) -> bool:
        """Return whether more trials failed than the spec allows."""
        return self.journal.table.failed > self.spec.max_failures

    def ending(self) -> Ending:
        """Return why no more trials start; valid when none is running."""
        if self.stop_reason() is not None:
            return "stop"
        if self.too_many_failures():
            return "failures"
        return "done" if self.left() <= 0 or self.deadline.why is None else self.deadline.why

    def left(self) -> int:
        """Return how many trials have not ended."""
        return self.spec.trials - len(self.journal.table.ended)

    def _record_report(self, number: int, report: TrialReport) -> None:
        if report.epoch not in self.journal.table.trials[number].reports:
            self.journal.report(number, report, self.clock())

    def _is_compared(self, config: Config) -> bool:
        """Whether the best trial is compared with this one: it is trained to its end, and keeps its own best model."""
        return self.spec.choose == "default" and self.spec.is_default(config)

    def _start(self, number: int, config: Config) -> TrialAssignment:
        table = self.journal.table
        own = table.trials[number].best(table.metric) if number in table.trials else None
        best = own if self._is_compared(config) else table.best()
        value = None if best is None else best.value
        assignment = TrialAssignment(trial=number, config=config, value_to_beat=value)
        self.journal.start(assignment, self.clock())
        self.running.add(number)
        return assignment

    def _end(self, number: int, end: TrialEnd) -> bool:
        self.journal.end(number, end, self.clock())
        self.running.discard(number)
        if end.outcome == "paused":
            self.paused.add(number)
        return False

    def _has_time_for(self, epochs_done: int) -> bool:
        table, epochs = self.journal.table, self.spec.epochs
        seconds = seconds_of_trial(table, epochs, epochs_done)
        seconds += seconds_of_trial(table, epochs) if self.spec.refit else 0.0
        return self.deadline.has_room_for(seconds, self.clock())
