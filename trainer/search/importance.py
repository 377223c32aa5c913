"""The importance of the options of a search (fANOVA). Imports neither torch nor ray."""

import optuna

from trainer.search.sampler import study_of_trials
from trainer.search.trials import Trial, TrialTable
from trainer.specs import SearchSpec

ENOUGH = 4  # complete trials; with fewer, importance is noise


def importance(table: TrialTable, spec: SearchSpec) -> dict[str, float]:
    """Return the share of the variance between trials that each option explains (fANOVA); empty for too few trials.

    fANOVA: Hutter, Hoos and Leyton-Brown, 2014. Only trials that ran all their epochs count.
    """
    if len(complete_trials(table)) < ENOUGH or len(spec.space.dimensions) < 2:  # noqa: PLR2004 -- a single option explains all
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=spec.seed)
    shares = optuna.importance.get_param_importances(study_of_trials(spec, table), evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in shares.items()}


def complete_trials(table: TrialTable) -> list[Trial]:
    """Return the trials that ran all their epochs, or stopped by their own patience."""
    return [trial for trial in table.ended if trial.state == "finished" and not trial.was_stopped_early]
