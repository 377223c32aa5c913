"""The sensitivity that the validation split supports for a threshold that was chosen on it.

If the threshold lies below x of n positives, with x known before the images, the sensitivity on new images exceeds the
5 % quantile of Beta(x, n - x + 1) with 95 % confidence, whatever the distribution of the scores (Wilks, Ann Math Stat
12, 1941). This is the one-sided lower bound of Clopper & Pearson (1934); for x = n it is 0.05^(1/n).

The requested sensitivity fixes such an x. A threshold that finds more positives at no further false positive finds a
number that depends on the scores of these images, so the bound of that number takes half the error: 2.5 % (Bonferroni).
The greater bound holds; simulated, it is exceeded by the true sensitivity in 94 to 98 % of splits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.decision_text import ALPHA
from trainer.evaluation.intervals import group_ids, proportion_interval

Mask = NDArray[np.bool_]


def supported_sensitivity(found: Mask, groups: Sequence[str], *, requested: Mask | None = None) -> float:
    """Return the lower bound of the sensitivity on new images, with 95 % confidence.

    With groups, positives of one patient count as their effective number, as in `proportion_interval`.

    Args:
        found: (n,), which positives lie at or above the threshold.
        groups: The group of each; empty where groups are unknown.
        requested: (n,), the positives of highest score that the requested sensitivity takes; None means `found`.
    """
    if not len(found):
        return 0.0
    if requested is None or requested.sum() >= found.sum():
        return _lower_bound(found, groups, ALPHA)
    return max(_lower_bound(requested, groups, ALPHA), _lower_bound(found, groups, ALPHA / 2))


def requested_positives(scores: NDArray[np.float64], min_sensitivity: float) -> Mask:
    """Return the fewest positives of highest score (n,) that are a share of at least `min_sensitivity`."""
    shares = np.arange(1, len(scores) + 1) / len(scores)
    order = np.argsort(-scores, kind="stable")
    requested = np.zeros(len(scores), dtype=bool)
    requested[order[: int(np.argmax(shares >= min_sensitivity)) + 1]] = True
    return requested


def _lower_bound(found: Mask, groups: Sequence[str], alpha: float) -> float:
    units = group_ids(groups, len(found))
    return (proportion_interval(found, units, tail=alpha) or (0.0, 1.0))[0]
