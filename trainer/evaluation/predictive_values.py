"""Predictive values at another prevalence than that of the evaluated split, by Bayes' theorem.

A test split rarely has the prevalence of the place where a model is used, and PPV and NPV depend on it.
"""

from typing import Any

import numpy as np

from trainer.evaluation.bootstrap import Labels, Mask
from trainer.evaluation.intervals import TAIL, interval_json, proportion_interval

# Both intervals hold together with 95 % confidence (Bonferroni), and so does what follows from them.
JOINT_TAIL = TAIL / 2


def predictive_values(is_positive: Mask, predicted: Mask, units: Labels, prevalence: float) -> dict[str, Any]:
    """Return PPV and NPV at a prevalence, with their 95 % intervals, as JSON values.

    Sensitivity and specificity are taken as the same at any prevalence. The intervals come from the exact intervals of
    both at 97.5 % each, so that their coverage is at least 95 %. None without positives or without negatives.

    Args:
        is_positive: (N,) whether an image is of the positive class.
        predicted: (N,) whether it is predicted as it.
        units: (N,) group indices.
        prevalence: Share of the positive class, between 0 and 1.
    """
    found: dict[str, Any] = {"prevalence": prevalence, "ppv": None, "npv": None, "intervals": {}}
    rates = [(predicted[is_positive], units[is_positive]), (~predicted[~is_positive], units[~is_positive])]
    if not all(len(successes) for successes, _ in rates):
        return found
    sensitivity, specificity = (float(successes.mean()) for successes, _ in rates)
    low, high = np.transpose([proportion_interval(*rate, tail=JOINT_TAIL) or (0.0, 1.0) for rate in rates])
    return {
        **found,
        "ppv": _ppv(sensitivity, specificity, prevalence),
        "npv": _ppv(specificity, sensitivity, 1 - prevalence),
        "intervals": {
            "ppv": interval_json((_ppv(low[0], low[1], prevalence) or 0.0, _ppv(high[0], high[1], prevalence) or 1.0)),
            "npv": interval_json(
                (_ppv(low[1], low[0], 1 - prevalence) or 0.0, _ppv(high[1], high[0], 1 - prevalence) or 1.0)
            ),
        },
    }


def _ppv(sensitivity: float, specificity: float, prevalence: float) -> float | None:
    """Return the share of true positives among those predicted as positive; None if nothing is."""
    true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    return float(true / (true + false)) if true + false > 0 else None
