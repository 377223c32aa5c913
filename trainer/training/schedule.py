"""The learning rate as a function of the step alone, so that resuming needs no state."""

import math

WARM_UP = 0.2  # of all steps; a fresh batch-normed head and random weights both settle in it
START, END = 0.04, 1e-4  # of the peak; the ends of the one-cycle schedule, Smith & Topin 2018


def lr_factor(step: int, steps: int) -> float:
    """Return the part of the peak rate at `step` of `steps`: a cosine up to 1, then a cosine down to almost 0."""
    warm = max(1.0, WARM_UP * steps)
    if step < warm:
        return _cosine(START, 1.0, step / warm)
    return _cosine(1.0, END, min(1.0, (step - warm) / max(1.0, steps - 1 - warm)))


def _cosine(first: float, last: float, part: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2
