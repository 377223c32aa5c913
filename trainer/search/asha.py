"""Asynchronous successive halving (ASHA, Li et al. 2020): stops trials that lag behind at a rung. Pure.

A rung is an epoch after which a trial continues only if it is among the best third. The rungs have no state of their
own: a trial is compared with the values that others reported at the same epoch before it. So a search that was killed
and restarted decides as it would have without the kill.
"""

from trainer.search.trials import EpochRecord, TrialTable
from trainer.specs import SearchSpec
from trainer.specs.metric import is_better

REDUCTION = 3  # one of three trials at a rung continues; Li et al. use 3 or 4
GRACE_EPOCHS = 2  # one epoch says little; on small data the third at epoch 2 contained the best of 64 trials


def rungs(epochs: int) -> tuple[int, ...]:
    """Return the rungs of trials of `epochs` epochs: epochs/3, epochs/9, ... down to GRACE_EPOCHS.

    Empty for trials so short that stopping them early saves nothing.
    """
    found = []
    rung = epochs // REDUCTION
    while rung >= GRACE_EPOCHS:
        found.append(rung)
        rung //= REDUCTION
    return tuple(reversed(found))


def rungs_of(spec: SearchSpec) -> tuple[int, ...]:
    """Return the rungs of a search; none with --no-early-stopping, nor of trials of folds, which report once."""
    return () if spec.early_stopping is False or spec.folds is not None else rungs(spec.epochs)


def survives(record: EpochRecord, table: TrialTable) -> bool:
    """Return whether the trial continues after the rung that it has just reached.

    It continues if it is among the best third of those that have reached the rung so far, itself included.
    """
    earlier = [
        other.reports[record.epoch].value
        for other in table.trials.values()
        if record.epoch in other.reports and other.reports[record.epoch].sequence < record.sequence
    ]
    # Of equal values the earlier is the better, as everywhere in the journal.
    better = sum(not is_better(record.value, value, table.metric) for value in earlier)
    return better < -(-(len(earlier) + 1) // REDUCTION)
