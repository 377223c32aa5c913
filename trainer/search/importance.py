"""The importance of the options of a search (fANOVA). Imports neither torch nor ray."""

import optuna

from trainer.search.sampler import study_of_trials
from trainer.search.trials import Trial, TrialTable
from trainer.specs import SearchSpec

ENOUGH = 4  # complete trials; with fewer, importance is noise


def importance(table: TrialTable, spec: SearchSpec) -> dict[str, float]:
    """Return the share of the variance between trials that each option alone explains (fANOVA); empty for too few
    trials, and for trials that do not differ.

    fANOVA: Hutter, Hoos and Leyton-Brown, 2014. Only trials that ran all their epochs count. What combinations of
    options explain belongs to none of them, so the shares add up to 1 or less.
    """
    complete = complete_trials(table, spec)
    values = {best.value for trial in complete if (best := trial.best(table.metric)) is not None}
    # A single option explains all, and Optuna raises where nothing varies.
    if len(complete) < ENOUGH or len(spec.space.dimensions) < 2 or len(values) < 2:  # noqa: PLR2004
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=spec.seed)
    try:
        shares = evaluator.evaluate(study_of_trials(spec, table))  # `get_param_importances` scales their sum to 1
    except RuntimeError:  # no tree found a difference: the only error of this type that fANOVA raises
        return {}
    return {name: round(float(share), 4) for name, share in shares.items()}


def complete_trials(table: TrialTable, spec: SearchSpec) -> list[Trial]:
    """Return the trials that ran all their epochs, or stopped by their own patience, and lie in the search space.

    An extended search may have trials outside of a narrower space.
    """
    finished = (trial for trial in table.ended if trial.state == "finished" and not trial.was_stopped_early)
    return [trial for trial in finished if trial.config in spec.space]
