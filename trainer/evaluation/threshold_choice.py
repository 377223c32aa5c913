"""The sensitivity that the validation split supports for a threshold that was chosen on it.

If the threshold lies below x of n positives, with x known before the images, the sensitivity on new images exceeds the
q quantile of Beta(x, n - x + 1) with confidence 1 - q, whatever the distribution of the scores (Wilks, Ann Math Stat
12, 1941). This is the one-sided lower bound of Clopper & Pearson (1934); for x = n it is q^(1/n).

The requested sensitivity fixes the fewest positives r that the threshold takes. It may take more, those that it finds
at no further false positive, and how many depends on the scores of these images. So r has half of the error of 5 %, and
each of the n - r greater numbers an equal share of the other half (Bonferroni): all these bounds hold together with a
confidence of at least 95 %, and thus the one that is stated. Where r = n, its bound has the whole 5 %. With groups the
number of positives is an estimate (see `proportion_interval`), and so is the confidence.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.decision_text import ALPHA
from trainer.evaluation.intervals import group_ids, proportion_interval

Mask = NDArray[np.bool_]


def supported_sensitivity(found: Mask, groups: Sequence[str], *, requested: Mask | None = None) -> float:
    """Return the one-sided lower bound of the sensitivity on new images, with at least 95 % confidence.

    With groups, positives of one patient count as their effective number, as in `proportion_interval`.

    Args:
        found: (n,), which positives lie at or above the threshold.
        groups: The group of each; empty where groups are unknown.
        requested: (n,), the positives of highest score that the requested sensitivity takes; None means that `found`
            were fixed before the images.
    """
    if not len(found):
        return 0.0
    if requested is None or requested.all():
        return _lower_bound(found, groups, ALPHA)
    bound = _lower_bound(requested, groups, ALPHA / 2)
    if found.sum() <= requested.sum():
        return bound
    return max(bound, _lower_bound(found, groups, ALPHA / 2 / int((~requested).sum())))


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
