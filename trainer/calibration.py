"""From logits to a decision: temperature and threshold, both chosen on the validation split only.

A threshold chosen on the data it is judged on flatters itself, so nothing here ever sees the test split.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def decide(probabilities: Floats, *, positive: int, threshold: float | None) -> Labels:
    """Return the class called for each row (N, C), as (N,) int64.

    Without a threshold the likeliest class (the first of equals); with one, `positive` wherever its probability
    reaches the threshold and the likeliest of the others elsewhere.
    """
    if threshold is None:
        return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
    others: Floats = probabilities.copy()
    others[:, positive] = -1.0
    reached = probabilities[:, positive] >= threshold
    return np.where(reached, positive, others.argmax(axis=1)).astype(np.int64)


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """Return the probabilities (N, C) that the same logits give when divided by `temperature` before softmax."""
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):  # the logarithm of 0 is -inf, which stays 0 at any temperature
        logits = np.log(probabilities) / temperature
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True), dtype=np.float64)
