"""Suggests the configuration of the next trial, with Optuna's samplers.

A suggestion depends only on the seed, the number of the trial and the journal before it: no sampler is kept between
two suggestions. So a search that was killed and restarted suggests exactly what it would have suggested without.
"""

import random

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from trainer.errors import SpecError
from trainer.search.trials import Trial, TrialTable
from trainer.specs import SearchSpec
from trainer.specs.metric import HIGHER_IS_BETTER
from trainer.specs.search_space import Config, Range, Space

STARTUP_TRIALS = 10  # at random, before TPE has enough to learn from; Optuna's default

optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggest(spec: SearchSpec, number: int, table: TrialTable) -> Config:
    """Return the varied options of trial `number`, given the trials that began before it.

    The first trial has the defaults of `train` unless the space excludes them, so that the best trial is never worse
    than them on the metric that ranks, and can be compared with them. With `--choose best`, a grid keeps its order.

    Raises:
        SpecError: The grid has no point left.
    """
    defaults = {name: getattr(spec, name) for name in spec.space.dimensions}
    if _tries_defaults(spec, number, table):
        return defaults
    if spec.algorithm == "grid":
        return _next_of_grid(spec, table)
    study = study_of_trials(spec, table, _sampler(spec, number))
    return dict(study.ask(distributions_of(spec.space)).params)


def _tries_defaults(spec: SearchSpec, number: int, table: TrialTable) -> bool:
    """Whether the next trial is the one with the defaults: the first, or the first own one of an extended search."""
    if spec.excluded_defaults:
        return False
    if spec.choose == "best":
        return number == 0 and spec.algorithm != "grid"
    is_first = number == 0 or spec.extend is not None
    return is_first and not any(spec.is_default(trial.config) for trial in table.trials.values())


def study_of_trials(spec: SearchSpec, table: TrialTable, sampler: BaseSampler | None = None) -> optuna.Study:
    """Return an Optuna study with all trials that lie in the space."""
    study = optuna.create_study(sampler=sampler, direction=optuna_direction(spec.best_by))
    distributions = distributions_of(spec.space)
    for trial in [*table.ended, *table.unfinished]:
        if trial.config in spec.space:  # an extended search may have trials outside of a narrower space
            study.add_trial(_frozen_trial(trial, distributions, spec.best_by))
    return study


def _sampler(spec: SearchSpec, number: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([spec.seed, number]).generate_state(1)[0])
    if spec.algorithm == "random":
        return RandomSampler(seed=seed)
    # "Constant liar": running trials count as bad, so that concurrent trials do not all try the same region.
    return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True)


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Return the space as Optuna's distributions, by the name of the option."""
    return {
        name: FloatDistribution(value.low, value.high, log=value.log)
        if isinstance(value, Range)
        else CategoricalDistribution(value)
        for name, value in space.dimensions.items()
    }


def optuna_direction(metric: str) -> StudyDirection:
    """Return the direction of a study that ranks by a metric."""
    return StudyDirection.MAXIMIZE if HIGHER_IS_BETTER[metric] else StudyDirection.MINIMIZE


def optuna_outcome(trial: Trial, metric: str) -> tuple[TrialState, float | None]:
    """Return state and value of a trial; one stopped at a rung is PRUNED, which TPE ranks below complete ones."""
    best = trial.best(metric)
    if trial.state == "failed" or (trial.state == "finished" and best is None):
        return TrialState.FAIL, None
    if trial.state == "finished" and best is not None:
        return TrialState.PRUNED if trial.was_stopped_early else TrialState.COMPLETE, best.value
    return TrialState.RUNNING, None


def _frozen_trial(trial: Trial, distributions: dict[str, BaseDistribution], metric: str) -> FrozenTrial:
    state, value = optuna_outcome(trial, metric)
    return create_trial(
        state=state,
        value=value,
        params={name: trial.config[name] for name in distributions},
        distributions=distributions,
        intermediate_values={epoch: report.value for epoch, report in trial.reports.items()},
    )


def _next_of_grid(spec: SearchSpec, table: TrialTable) -> Config:
    """Return the first point that no trial has used, in an order shuffled by the seed."""
    points = list(spec.space.grid())
    random.Random(spec.seed).shuffle(points)  # noqa: S311 -- so that a search that is cut short covers the whole space
    untried = spec.space.untried(trial.config for trial in table.trials.values())
    for point in points:
        if point in untried:
            return point
    raise SpecError(f"all {len(points)} points of the grid have been tried; add points, as in --lr 1e-5:1e-2:9")
