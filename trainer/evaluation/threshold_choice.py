"""The sensitivity that the validation split supports for a threshold that was chosen on it.

If the threshold lies below x of n positives, the sensitivity on new images exceeds the 5 % quantile of Beta(x,
n - x + 1) with 95 % confidence, whatever the distribution of the scores (Wilks, Ann Math Stat 12, 1941). This is the
one-sided lower bound of Clopper & Pearson (1934); for x = n it is 0.05^(1/n).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from trainer.evaluation.decision_text import ALPHA
from trainer.evaluation.intervals import effective_sample_size, group_ids


def supported_sensitivity(found: NDArray[np.bool_], groups: Sequence[str]) -> float:
    """Return the lower bound of the sensitivity: `found` (n,) says which positives lie at or above the threshold.

    With groups, positives of one patient count as their effective number.
    """
    if not len(found):
        return 0.0
    count = effective_sample_size(found, group_ids(groups, len(found)))
    reached = float(found.mean()) * count
    return float(beta.ppf(ALPHA, reached, count - reached + 1)) if reached > 0 else 0.0
