"""Trains the heads of several trials together, and says what each trial has to report."""

import time
from collections.abc import Sequence
from functools import partial

from trainer.search.head_group import HeadGroup, Outcomes
from trainer.search.head_training import HeadTraining
from trainer.search.head_trial import HeadTrial, end_by, end_of
from trainer.search.trial_messages import TrialEnd, TrialStep

REPORT_SECONDS = 0.25  # about, between two messages: one costs Ray Tune more time than a short epoch


def step_together(group: HeadGroup, trials: Sequence[HeadTrial]) -> dict[int, TrialStep]:
    """Train until one of the trials is at a rung or at its end, or for REPORT_SECONDS; return the step of each trial.

    An error of a trial becomes its end, so that the process can train the others.

    Raises:
        Exception: A step of several trials failed, for example for lack of memory. It is not known which of them is the
            cause: the process should end, and each trial resume from its checkpoint.
    """
    until = time.monotonic() + REPORT_SECONDS
    while True:
        ends = _train_epoch(group, trials)
        is_due = any(ends.values()) or any(trial.is_at_rung for trial in trials)
        if is_due or time.monotonic() >= until:
            return {trial.assignment.trial: trial.taken(ends[trial]) for trial in trials}


def _train_epoch(group: HeadGroup, trials: Sequence[HeadTrial]) -> dict[HeadTrial, TrialEnd | None]:
    """Train an epoch of each trial; return the ends of those that ended."""
    heads = dict[HeadTrial, list[HeadTraining]]()

    def begin(trial: HeadTrial) -> None:
        heads[trial] = trial.heads_to_train()

    ends = {trial: end_of(partial(begin, trial), trial=trial.assignment.trial) for trial in trials}
    began, outcomes = time.monotonic(), Outcomes()

    def train() -> None:
        outcomes.update(group.train_epoch([head for of_trial in heads.values() for head in of_trial]))

    if len(heads) == 1:
        [trial] = heads
        if end := end_of(train, trial=trial.assignment.trial):
            return {**ends, trial: end}
    else:
        train()
    seconds = time.monotonic() - began
    for trial, of_trial in heads.items():
        ends[trial] = end_of(partial(_after_epoch, trial, of_trial, outcomes, seconds), trial=trial.assignment.trial)
    return ends


def _after_epoch(
    trial: HeadTrial, heads: Sequence[HeadTraining], outcomes: Outcomes, seconds: float
) -> TrialEnd | None:
    """Report the epoch of a trial whose heads have trained it, with the seconds that all trials took together.

    Return the end of the trial if it has ended, or if an error or a stop has ended one of its heads.
    """
    ends = [end_by(error, trial=trial.assignment.trial) for head in heads if (error := outcomes[head]) is not None]
    if failed := [end for end in ends if end.outcome in ("failed", "lost")]:
        return failed[0]
    if ends:
        trial.save()
        return ends[0]
    return trial.after_epoch([{**head.line, "seconds": seconds / len(heads)} for head in heads])
