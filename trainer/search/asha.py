"""Asynchronous successive halving (ASHA, Li et al. 2020): trials that lag behind at a rung are ended. Pure.

Rungs live nowhere but in the ledger: what a trial is measured against are the values that others reported at the
same epoch before it, so a search that died decides as it would have.
"""

from trainer.search.trials import Report, TrialTable
from trainer.specs import SearchSpec
from trainer.specs.metric import is_better

REDUCTION = 3  # of three trials at a rung one goes on; Li et al. use 3 or 4
GRACE_EPOCHS = 2  # a first epoch says little; on small data the third of the second held the best of 64 trials


def rungs(epochs: int) -> tuple[int, ...]:
    """Return the epochs after which lagging trials are ended: epochs/3, epochs/9, ... down to the grace.

    Empty for trials so short that there is nothing to gain.
    """
    found = []
    rung = epochs // REDUCTION
    while rung >= GRACE_EPOCHS:
        found.append(rung)
        rung //= REDUCTION
    return tuple(reversed(found))


def rungs_of(spec: SearchSpec) -> tuple[int, ...]:
    """Return the rungs of a search; none where it stops no trial early."""
    return () if spec.early_stopping is False else rungs(spec.epochs)


def survives(report: Report, table: TrialTable) -> bool:
    """Return whether the trial goes on after the rung that it has just reached.

    It does while it is among the best third of those that reached the rung so far, itself included.
    """
    earlier = [
        other.reports[report.epoch].value
        for other in table.trials.values()
        if report.epoch in other.reports and other.reports[report.epoch].sequence < report.sequence
    ]
    # Of equals the earlier is the better, as everywhere in the ledger.
    better = sum(not is_better(report.value, value, table.metric) for value in earlier)
    return better < -(-(len(earlier) + 1) // REDUCTION)
