"""What a search does next: which trial starts, which goes on, which ends. Knows neither torch nor Ray."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.search.asha import rungs_of, survives
from trainer.search.deadline import Clock, Deadline, seconds_of_trial
from trainer.search.journal import REPORTED, TrialJournal
from trainer.search.sampler import suggest
from trainer.specs import SearchSpec
from trainer.specs.search_space import SEARCHED, Config

# What a trial reports of an epoch.

Ending = Literal["stop", "failures", "until", "max_duration", "window", "done"]


@dataclass
class SearchController:
    """Decides from the ledger and the clock alone.

    Attributes:
        stop_reason: Why the whole run shall stop, or None.
        running: Numbers of the trials that this attempt has started and that have not ended or paused.
    """

    spec: SearchSpec
    journal: TrialJournal
    deadline: Deadline
    clock: Clock
    stop_reason: Callable[[], str | None]
    running: set[int] = field(default_factory=set)
    paused: set[int] = field(default_factory=set)
    closed: bool = False

    def next_trial(self) -> dict[str, Any] | None:
        """Return what the next trial to start needs to know, or None when none starts any more.

        Trials that an earlier attempt left unfinished go first. The start is in the ledger before it is returned.
        """
        if self.closed or self.must_pause() or self.too_many_failures():
            return None
        for trial in self.journal.table.unfinished:
            if trial.number not in self.running | self.paused and self._has_room(trial.epochs):
                return self._started(trial.number, trial.config)
        # Of a search that was cancelled --extend takes over the trials that had ended, which need not be the first.
        number = next(free for free in itertools.count() if free not in self.journal.table.trials)
        if number >= self.spec.trials or not self._has_room(0):
            return None
        varied = suggest(self.spec, number, self.journal.table)
        return self._started(number, {name: getattr(self.spec, name) for name in SEARCHED} | varied)

    def take(self, number: int, result: Mapping[str, Any]) -> bool:
        """Write down what a trial reports, with the epochs `before` the last one, and return whether it goes on."""
        for earlier in result.get("before", ()):
            self._note(number, earlier)
        if "failed" in result:
            return self._ended(number, {"event": "failed", "error": result["failed"]})
        if result.get("paused"):
            self.paused.add(number)
            return self._ended(number, {"event": "paused"})
        self._note(number, result)
        if result.get("done"):
            return self._ended(number, {"event": "finished", "why": result["why"]})
        report = self.journal.table.trials[number].reports[result["epoch"]]
        if report.epoch in rungs_of(self.spec) and not survives(report, self.journal.table):
            return self._ended(number, {"event": "finished", "why": "rung"})
        return True

    def close(self) -> None:
        """Start no trial any more; the search itself is in trouble."""
        self.closed = True
        self.running.clear()

    def has_work(self) -> bool:
        """Return whether a trial is left that may start now."""
        return not (self.must_pause() or self.too_many_failures()) and self.left() > 0

    def must_pause(self) -> bool:
        """Return whether running trials shall save a checkpoint and wait."""
        return self.stop_reason() is not None or self.deadline.is_over(self.clock())

    def too_many_failures(self) -> bool:
        """Return whether the search as a whole has failed."""
        return self.journal.table.failed > self.spec.max_failures

    def ending(self) -> Ending:
        """Return why no trial starts any more; ask when none runs."""
        if self.stop_reason() is not None:
            return "stop"
        if self.too_many_failures():
            return "failures"
        return "done" if self.left() <= 0 or self.deadline.why is None else self.deadline.why

    def left(self) -> int:
        """Return how many trials have not ended."""
        return self.spec.trials - len(self.journal.table.ended)

    def _note(self, number: int, result: Mapping[str, Any]) -> None:
        if result["epoch"] not in self.journal.table.trials[number].reports:
            self._append({"event": "epoch", "trial": number, **{name: result.get(name) for name in REPORTED}})

    def _started(self, number: int, config: Config) -> dict[str, Any]:
        self._append({"event": "started", "trial": number, "config": config})
        self.running.add(number)
        best = self.journal.table.best()
        return {"trial": number, "config": config, "value_to_beat": None if best is None else best.value}

    def _ended(self, number: int, event: dict[str, Any]) -> bool:
        self._append({**event, "trial": number})
        self.running.discard(number)
        return False

    def _append(self, event: Mapping[str, Any]) -> None:
        self.journal.append(event, self.clock())

    def _has_room(self, done: int) -> bool:
        table, epochs = self.journal.table, self.spec.epochs
        seconds = seconds_of_trial(table, epochs, done)
        seconds += seconds_of_trial(table, epochs) if self.spec.refit else 0.0
        return self.deadline.has_room_for(seconds, self.clock())
