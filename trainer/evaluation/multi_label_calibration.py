"""Temperatures and decision thresholds of a multi-label model, fitted on the validation split only.

Each label has a temperature of its own: labels differ in how overconfident the model is, and one temperature for all
would be that of the most frequent labels. A label with few known images takes the temperature of all labels together.
"""

import numpy as np
from scipy.special import expit, logit

from trainer.evaluation.calibration import (
    Calibration,
    Floats,
    LabelCalibration,
    Labels,
    fit_temperature,
    threshold_for_sensitivity,
)

DEFAULT_THRESHOLD = 0.5
FEWEST = 10  # images that have a label, and that lack it, from which on the label gets its own temperature


def apply_temperatures(probabilities: Floats, calibration: Calibration, classes: tuple[str, ...]) -> Floats:
    """Return the probabilities (N, C) after temperature scaling: the sigmoid of each logit over its temperature."""
    temperatures = np.array([label_calibration(calibration, name).temperature for name in classes])
    if (temperatures == 1).all():
        return probabilities
    with np.errstate(divide="ignore"):  # the logit of 0 is -inf, and its probability stays 0 at any temperature
        return np.asarray(expit(logit(probabilities) / temperatures), dtype=np.float64)


def label_decisions(calibrated: Floats, calibration: Calibration, classes: tuple[str, ...]) -> Labels:
    """Return which labels are predicted for each image, (N, C) int64 of 0 and 1; none or several per image."""
    return np.asarray(calibrated >= thresholds(calibration, classes), dtype=np.int64)


def thresholds(calibration: Calibration, classes: tuple[str, ...]) -> Floats:
    """Return the decision threshold of each label, (C,)."""
    chosen = [label_calibration(calibration, name).threshold for name in classes]
    return np.array([DEFAULT_THRESHOLD if value is None else value for value in chosen])


def label_calibration(calibration: Calibration, name: str) -> LabelCalibration:
    """Return the temperature and threshold of a label; the identity if there is none."""
    return calibration.labels.get(name, LabelCalibration())


def fit_label_calibration(
    probabilities: Floats, targets: Labels, *, data: str, classes: tuple[str, ...]
) -> Calibration:
    """Fit the temperature of each label on its known entries of the validation split.

    Args:
        probabilities: (N, C) float64, before temperature scaling.
        targets: (N, C) int64: 1 present, 0 absent, -1 unknown.
        data: Digest of the data set.
        classes: Names of the C labels.
    """
    pooled = _temperature(probabilities.ravel(), targets.ravel(), default=1.0)
    labels = {
        name: LabelCalibration(temperature=_temperature(probabilities[:, c], targets[:, c], default=pooled))
        for c, name in enumerate(classes)
    }
    return Calibration(data=data, samples=len(targets), labels=labels)


def choose_threshold(
    calibration: Calibration,
    probabilities: Floats,
    targets: Labels,
    *,
    classes: tuple[str, ...],
    label: str,
    min_sensitivity: float,
) -> Calibration:
    """Choose the threshold of one label that reaches a sensitivity on the validation split at the least cost.

    See `threshold_for_sensitivity`. The temperatures and the thresholds of the other labels stay.

    Raises:
        TrainerError: No image of the split is known to have the label.
    """
    at = classes.index(label)
    known = targets[:, at] >= 0
    seen = apply_temperatures(probabilities, calibration, classes)[known, at]
    threshold, reached = threshold_for_sensitivity(
        two_columns(seen), targets[known, at], positive=1, min_sensitivity=min_sensitivity, name=label
    )
    chosen = {"threshold": threshold, "min_sensitivity": min_sensitivity, "sensitivity": reached}
    of_label = label_calibration(calibration, label).model_copy(update=chosen)
    return calibration.model_copy(update={"labels": {**calibration.labels, label: of_label}})


def two_columns(probabilities: Floats) -> Floats:
    """Return the probabilities of one label (K,) as those of two classes, (K, 2): absent and present."""
    return np.column_stack([1 - probabilities, probabilities])


def _temperature(probabilities: Floats, targets: Labels, *, default: float) -> float:
    if min((targets == 1).sum(), (targets == 0).sum()) < FEWEST:
        return default
    known = targets >= 0
    return fit_temperature(two_columns(probabilities[known]), targets[known])
