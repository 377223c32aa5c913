"""Temperature scaling of probabilities. Without scikit-learn, because the command line imports it for `compare`."""

import numpy as np
from scipy.special import softmax

from trainer.evaluation.bootstrap import Floats


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return the probabilities (N, C) after temperature scaling: softmax of the logits divided by `temperature`."""
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):  # log(0) is -inf, and its probability stays 0 at any temperature
        logits = np.log(probabilities) / temperature
    return np.asarray(softmax(logits, axis=1), dtype=np.float64)
