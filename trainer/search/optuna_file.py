"""The trials of a search as a file that Optuna and optuna-dashboard open: `JournalStorage` with `JournalFileBackend`.

The file is made by Optuna's own storage, whose log is kept in memory and is written at once, one JSON object a line.
"""

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from cluster.access import why_not
from cluster.errors import StorageError, UnknownRun
from cluster.run_paths import RunPaths
from trainer.search.sampler import distributions_of, optuna_direction, optuna_outcome
from trainer.search.trials import Trial, TrialTable, read_trial_events
from trainer.specs import SearchSpec
from trainer.specs.search_space import Range, Value


def write_optuna_file(
    target: Path, paths: RunPaths, spec: SearchSpec, table: TrialTable, *, submitted: datetime, has_ended: bool
) -> None:
    """Write a new file with one study that has the id of the run as its name.

    A trial that ASHA stopped is PRUNED. Trials that have not ended are RUNNING; once the search has ended, they are
    PRUNED as well, or FAIL without an epoch. Options that do not vary are user attributes, like the trial's number.

    Args:
        target: The file.
        paths: The search.
        spec: Its spec.
        table: Its trials.
        submitted: The time of trials whose journal has none, as those of version 0.1.0.
        has_ended: Whether the search has ended.

    Raises:
        StorageError: The file exists or cannot be written.
    """
    backend = _MemoryBackend()
    study = optuna.create_study(
        storage=JournalStorage(backend), study_name=paths.run_id, direction=optuna_direction(spec.best_by)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([spec.best_by])
    study.set_user_attr("algorithm", spec.algorithm)
    space = _widened(distributions_of(spec.space), table.trials.values())
    for _, trial in sorted(table.trials.items()):
        last = _stopped(trial) if has_ended and trial.ended is None else trial
        outcome, value = optuna_outcome(last, spec.best_by)
        found = _frozen_trial(trial, outcome, value, space)
        started, ended = _times(paths, trial, submitted)
        # With a time zone: Optuna takes a time without one for a time of this machine.
        found.datetime_start, found.datetime_complete = started, ended if outcome.is_finished() else None
        study.add_trial(found)
    _write_new(target, backend.logs)


@dataclass
class _MemoryBackend(BaseJournalBackend):
    """The log of a storage, in memory."""

    logs: list[dict[str, Any]] = field(default_factory=list)

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return the log from an entry on."""
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries, in the form that they have after they were read from a file."""
        self.logs += json.loads(json.dumps(logs))


def _widened(space: Mapping[str, BaseDistribution], trials: Iterable[Trial]) -> dict[str, BaseDistribution]:
    """Return the distributions with all choices of the trials: a search may extend one with other choices.

    Optuna requires the same choices in all trials of a study.
    """
    trials = list(trials)
    return {
        name: CategoricalDistribution(_union(distribution.choices, name, trials))
        if isinstance(distribution, CategoricalDistribution)
        else distribution
        for name, distribution in space.items()
    }


def _union(choices: Iterable[Any], name: str, trials: Iterable[Trial]) -> tuple[Value, ...]:
    used = (trial.config[name] for trial in trials if name in trial.config)
    return tuple(dict.fromkeys([*choices, *(value for value in used if value is not None)]))


def _frozen_trial(
    trial: Trial, outcome: TrialState, value: float | None, space: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    chosen = {name: _containing(space[name], trial.config.get(name)) for name in space}
    distributions = {name: distribution for name, distribution in chosen.items() if distribution is not None}
    fixed = {name: value for name, value in trial.config.items() if name not in distributions}
    about = {
        "trial": trial.number,
        "state": trial.state,
        "why": trial.why,
        "error": trial.error,
        "from": trial.extended_from,
    }
    return create_trial(
        state=outcome,
        value=value,
        params={name: trial.config[name] for name in distributions},
        distributions=distributions,
        user_attrs=fixed | {name: text for name, text in about.items() if text is not None},
        intermediate_values={epoch: report.value for epoch, report in sorted(trial.reports.items())},
    )


def _containing(distribution: BaseDistribution, value: Any) -> BaseDistribution | None:
    """Return the distribution, wider if the value is outside; None if no distribution of its kind has the value."""
    if not isinstance(distribution, FloatDistribution):
        return None if value is None else distribution
    if not isinstance(value, int | float) or not math.isfinite(value) or (distribution.log and value <= 0):
        return None
    if value in Range(low=distribution.low, high=distribution.high):
        return distribution
    low, high = min(distribution.low, value), max(distribution.high, value)
    return FloatDistribution(low, high, log=distribution.log)


def _stopped(trial: Trial) -> Trial:
    """Return a trial that its search left unfinished, as one that was stopped early."""
    return replace(trial, state="finished", why="paused")


def _times(paths: RunPaths, trial: Trial, submitted: datetime) -> tuple[datetime, datetime]:
    """Return when a trial started, and when it ended or last reported.

    A trial that was copied from an earlier search has its times from that search's journal, as long as it exists.
    """
    reported = [record.recorded_at for record in trial.reports.values() if record.recorded_at is not None]
    started = trial.started_at or min(reported, default=submitted)
    own = started, trial.ended_at or max(reported, default=started)
    if trial.extended_from is None:
        return own
    with suppress(UnknownRun, StorageError):
        earlier = RunPaths.of(paths.storage, trial.extended_from)
        original = TrialTable.fold(read_trial_events(earlier.trials).lines, "loss").trials.get(trial.number)
        if original is not None and earlier != paths:
            return _times(earlier, original, submitted)
    return own


def _write_new(target: Path, logs: Iterable[Mapping[str, Any]]) -> None:
    content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
    try:
        with target.open("xb") as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                target.unlink(missing_ok=True)
                raise
    except FileExistsError as error:
        raise StorageError(f"--optuna {target} exists and is not overwritten; choose another name") from error
    except OSError as error:
        raise StorageError(
            f"--optuna {target} cannot be written ({why_not(error, target)}); choose another place"
        ) from error
