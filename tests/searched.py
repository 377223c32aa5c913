"""Searches for tests: in this process with real Ray, or as a real process where it must die."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.files import read_json, read_lines
from cluster.launch import LocalLauncher, RunningTrainer
from cluster.lease import Lease, latest_attempt
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from tests.trained import QUICK, new_run
from trainer.attempt import Attempt
from trainer.result import RunResult
from trainer.search.controller import SearchController
from trainer.search.deadline import Clock, Deadline
from trainer.search.journal import TrialJournal
from trainer.search.run import search
from trainer.search.trial_messages import TrialEnd, TrialReport, TrialStep
from trainer.search.trials import TrialTable, read_trial_events
from trainer.specs import SearchSpec, build

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def search_spec(shards: Path | str, **options: Any) -> SearchSpec:
    """A search whose trials take a second or two."""
    small = {"space": {"head_width": (8, 16, 32)}, "trials": 4}
    quick = {name: value for name, value in QUICK.items() if name != "head_width"}
    return build(SearchSpec, shards=str(shards), **(quick | small | options))


def events_of(paths: RunPaths, kind: str) -> list[dict[str, Any]]:
    """The events of a kind in a search's trial journal."""
    return [event for event in read_lines(paths.trials) if event["event"] == kind]


def table_of(paths: RunPaths, spec: SearchSpec) -> TrialTable:
    """The trials of a search in its trial journal."""
    return TrialTable.fold(read_trial_events(paths.trials).lines, spec.best_by)


def attempt_at(paths: RunPaths, spec: SearchSpec, **options: Any) -> RunResult:
    """Make the next attempt at a search in this process."""
    attempt = Attempt.of(paths.folder, None, Settings(storage=paths.storage))
    with attempt.sending_heartbeats():
        result = search(attempt, spec, **options)
    result.publish(attempt.lease)
    return result


def started(paths: RunPaths) -> RunningTrainer:
    """Start the next attempt as a process."""
    lease = Lease.claim(paths, after=latest_attempt(paths))
    return LocalLauncher().start(paths, lease.attempt)


def killed_when(paths: RunPaths, happened: Callable[[], bool]) -> int:
    """Start an attempt, kill -9 the trainer once something has happened, and return the exit code."""
    running = started(paths)
    file, until = paths.attempts / f"{latest_attempt(paths)}.json", time.monotonic() + 600
    while (trainer := read_json(file)["pid"]) == os.getpid() or not happened():  # until its heartbeat it is who claimed
        assert time.monotonic() < until, paths.log.read_text()[-2000:]
        assert running.wait(0.01) is None, paths.log.read_text()[-2000:]
    os.kill(trainer, signal.SIGKILL)
    code = running.wait(600)
    assert code is not None
    return code


class SimulatedSearch:
    """A search without Ray: the controller with its journal, and trials that report what the test gives them."""

    def __init__(self, paths: RunPaths, spec: SearchSpec, clock: Clock = lambda: NOON) -> None:
        self.spec = spec
        lease = Lease.claim(paths, after=len(list(paths.attempts.glob("*.json"))) if paths.attempts.exists() else 0)
        journal = TrialJournal.opened(lease, spec.best_by, clock())
        deadline = Deadline.of(spec, began=journal.began, now=clock())
        self.stop: str | None = None
        self.controller = SearchController(spec, journal, deadline, clock, lambda: self.stop)

    def start(self) -> int | None:
        """Start the next trial and return its number."""
        found = self.controller.next_trial()
        return None if found is None else found.trial

    def epoch(self, trial: int, number: int, value: float, *, seconds: float = 1.0) -> bool:
        """Let a trial report an epoch and return whether it continues."""
        report = TrialReport(epoch=number, value=value, seconds=seconds)
        end = TrialEnd.finished("epochs") if number == self.spec.epochs else None
        return self.controller.record(trial, TrialStep(reports=(report,), end=end))

    def pause(self, trial: int) -> None:
        """Let a trial pause."""
        self.controller.record(trial, TrialStep(end=TrialEnd.paused()))

    def fail(self, trial: int, error: str) -> None:
        """Let a trial fail."""
        self.controller.record(trial, TrialStep(end=TrialEnd.failed(error)))

    def whole(self, trial: int, values: Sequence[float] | Iterable[float]) -> int:
        """Let a trial report epochs until it ends; return how many it reported."""
        number = 0
        for number, value in enumerate(values, 1):
            if not self.epoch(trial, number, value):
                break
        return number


def simulated_search(folder: Path, clock: Clock = lambda: NOON, **options: Any) -> SimulatedSearch:
    """A new search without Ray."""
    spec = search_spec("shards", **options)
    return SimulatedSearch(new_run(folder, spec, "search"), spec, clock)
