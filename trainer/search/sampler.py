"""Which configuration comes next.

A suggestion is a function of the seed, its number and the ledger before it, and of nothing else: no sampler lives on
between two suggestions. So a search that died goes on with the very suggestions it would have made.
"""

import random

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from trainer.errors import SpecError
from trainer.search.trials import Trial, TrialTable
from trainer.specs import SearchSpec
from trainer.specs.metric import HIGHER_IS_BETTER
from trainer.specs.search_space import Config, Range, Space

STARTUP_TRIALS = 10  # drawn at random before TPE has something to learn from; Optuna's own default

optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggest(spec: SearchSpec, number: int, table: TrialTable) -> Config:
    """Return the varied options of trial `number`, given the trials that began before it.

    The first is what `train` would do, where the space has it: so a search never ends below it on what it ranks by.

    Raises:
        SpecError: The grid has no point left.
    """
    if spec.algorithm == "grid":
        return _next_of_grid(spec, table)
    defaults = {name: getattr(spec, name) for name in spec.space.dimensions}
    if number == 0 and defaults in spec.space:
        return defaults
    study = study_of_trials(spec, table, _sampler(spec, number))
    return dict(study.ask(_distributions(spec.space)).params)


def study_of_trials(spec: SearchSpec, table: TrialTable, sampler: BaseSampler | None = None) -> optuna.Study:
    """Return a study that knows all trials of the space."""
    study = optuna.create_study(sampler=sampler, direction="maximize" if HIGHER_IS_BETTER[spec.best_by] else "minimize")
    distributions = _distributions(spec.space)
    for trial in [*table.ended, *table.unfinished]:
        if trial.config in spec.space:  # an extended search may know trials outside of a narrower space
            study.add_trial(_told(trial, distributions, spec.best_by))
    return study


def _sampler(spec: SearchSpec, number: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([spec.seed, number]).generate_state(1)[0])
    if spec.algorithm == "random":
        return RandomSampler(seed=seed)
    # Trials that still run count as bad (the "constant liar"), so that those at once do not all try the same place.
    return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {
        name: FloatDistribution(value.low, value.high, log=value.log)
        if isinstance(value, Range)
        else CategoricalDistribution(value)
        for name, value in space.dimensions.items()
    }


def _told(trial: Trial, distributions: dict[str, BaseDistribution], metric: str) -> FrozenTrial:
    """Return a trial as Optuna knows it; one that was ended at a rung is pruned, and ranks below those that went on."""
    best = trial.best(metric)
    state, value = TrialState.RUNNING, None
    if trial.state == "failed" or (trial.state == "finished" and best is None):
        state = TrialState.FAIL
    elif trial.state == "finished" and best is not None:
        state, value = TrialState.PRUNED if trial.why in ("rung", "paused") else TrialState.COMPLETE, best.value
    return create_trial(
        state=state,
        value=value,
        params={name: trial.config[name] for name in distributions},
        distributions=distributions,
        intermediate_values={epoch: report.value for epoch, report in trial.reports.items()},
    )


def _next_of_grid(spec: SearchSpec, table: TrialTable) -> Config:
    """Return the first point, in an order drawn from the seed, that no trial has taken."""
    points = list(spec.space.grid())
    random.Random(spec.seed).shuffle(points)  # noqa: S311 -- so that a search cut short has seen the whole space
    untried = spec.space.untried(trial.config for trial in table.trials.values())
    for point in points:
        if point in untried:
            return point
    raise SpecError(f"all {len(points)} points of the grid are tried; give it more, as in --lr 1e-5:1e-2:9")
