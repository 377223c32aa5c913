"""Classification metrics of one split, computed by scikit-learn, as JSON values."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from trainer.errors import ModelMismatch, TrainerError
from trainer.evaluation.bootstrap import Floats, Labels, Mask, ranked_classes
from trainer.evaluation.calibration import predicted_classes
from trainer.evaluation.intervals import class_intervals, confidence_intervals, group_ids, interval_json
from trainer.evaluation.metric_text import NO_IMAGES
from trainer.evaluation.recalibration import calibrated_event, recalibration
from trainer.evaluation.temperature import apply_temperature

BINS = 15  # of the calibration error; Guo et al. 2017, "On Calibration of Modern Neural Networks"


def classification_metrics(
    probabilities: Floats,
    labels: Labels,
    *,
    classes: tuple[str, ...],
    positive: str | None,
    threshold: float | None = None,
    temperature: float = 1.0,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    intervals: bool = True,
) -> dict[str, Any]:
    """Return the metrics of one split as JSON values.

    Args:
        probabilities: (N, C) float64, rows that sum to 1, before temperature scaling.
        labels: (N,) int64, indices into `classes`.
        classes: Names of the C classes.
        positive: Class that sensitivity, specificity and a threshold refer to. None means the first; `positive_stated`
            is then false unless there is a threshold: nobody said that this is the class to find.
        threshold: Predict `positive` if its probability after temperature scaling is at least this; None predicts
            the most probable class. With a threshold, `at_default` holds the metrics of the most probable class.
        temperature: All metrics are those of the probabilities after temperature scaling, which `predict` returns.
            `uncalibrated` holds loss, Brier score and calibration error before it, as validation in training has them.
        groups: Patient or case of each sample; the intervals account for them.
        seed: Random seed of the bootstrap.
        intervals: Whether to add 95 % confidence intervals: `intervals`, and of each class in `per_class`.

    Returns:
        A metric that is undefined for these samples is None, and `undefined` gives the reason. It also names the
        classes that a mean over the classes leaves out, because there are no such images.

    Raises:
        TrainerError: There are no samples, or a probability is not finite.
        ModelMismatch: `positive` is not one of the classes, or the shapes do not match.
    """
    at = position_of(positive, classes)
    probabilities, labels = _checked(probabilities, labels, classes)
    before, probabilities = probabilities, apply_temperature(probabilities, temperature)
    predicted = predicted_classes(probabilities, positive=at, threshold=threshold)
    ranking, undefined = _ranking(probabilities, labels, classes, at)
    undefined = _without_recall(labels, classes) | undefined
    found: dict[str, Any] = {
        "n": len(labels),
        "classes": list(classes),
        "positive": classes[at],
        "positive_stated": positive is not None or threshold is not None,
        "threshold": threshold,
        "temperature": temperature,
        **_likelihood(probabilities, labels),
        **_decisions(labels, predicted, classes, at),
        **ranking,
        "undefined": undefined,
    }
    if temperature != 1:
        found["uncalibrated"] = _likelihood(before, labels)
    if threshold is not None:
        found["at_default"] = _decisions(labels, probabilities.argmax(axis=1), classes, at)
    if intervals:
        found["intervals"] = confidence_intervals(
            probabilities, labels, predicted, positive=at, groups=groups, seed=seed
        )
        fit = recalibration(*calibrated_event(probabilities, labels, at), group_ids(groups, len(labels)))
        for name, estimate in fit.items():
            found[name], found["intervals"][name] = estimate.value, interval_json(estimate.interval)
        by_class = class_intervals(labels, predicted, len(classes), groups)
        for name, found_intervals in zip(classes, by_class, strict=True):
            found["per_class"][name]["intervals"] = found_intervals
    return found


def position_of(positive: str | None, classes: tuple[str, ...]) -> int:
    """Return the index of `positive` in `classes`; None means the first.

    Raises:
        ModelMismatch: It is not one of them.
    """
    if positive is None:
        return 0
    if positive not in classes:
        raise ModelMismatch(f"positive class {positive!r} is not one of {', '.join(classes)}; choose one of these")
    return classes.index(positive)


def _checked(probabilities: Floats, labels: Labels, classes: tuple[str, ...]) -> tuple[Floats, Labels]:
    if not len(labels):
        raise TrainerError("no samples to evaluate; choose a split that has images")
    if probabilities.shape != (len(labels), len(classes)):
        raise ModelMismatch(
            f"probabilities {probabilities.shape} do not match {len(labels)} labels and {len(classes)} classes; "
            "use data with the model's classes"
        )
    if not np.isfinite(probabilities).all():
        raise TrainerError(
            "a probability is not finite (NaN or inf): the model has diverged; train it with a lower --lr"
        )
    wide = probabilities.astype(np.float64)
    return wide / wide.sum(axis=1, keepdims=True), labels.astype(np.int64)


def _likelihood(probabilities: Floats, labels: Labels) -> dict[str, float]:
    """Return the metrics that depend on the probabilities and not on a decision."""
    count = probabilities.shape[1]
    return {
        "loss": float(sk.log_loss(labels, probabilities, labels=range(count))),
        "brier": float(sk.brier_score_loss(labels, probabilities, labels=range(count))),
        "ece": _calibration_error(probabilities.max(axis=1).clip(max=1), probabilities.argmax(axis=1) == labels),
    }


def _calibration_error(confidence: Floats, is_correct: Mask) -> float:
    """Return the expected calibration error over `BINS` equal-width bins (Guo et al. 2017, eq. 3)."""
    accuracy, mean_confidence = calibration_curve(is_correct.astype(int), confidence, n_bins=BINS, pos_label=1)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence))
    return float(np.average(abs(accuracy - mean_confidence), weights=counts[counts > 0]))


def _decisions(labels: Labels, predicted: Labels, classes: tuple[str, ...], positive: int) -> dict[str, Any]:
    """Return the metrics of the predicted classes."""
    every = range(len(classes))
    is_positive, predicted_positive = labels == positive, predicted == positive
    present = np.unique(labels)
    return {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "balanced_accuracy": _recall(labels, predicted, labels=present, average="macro"),
        "sensitivity": _recall(is_positive, predicted_positive),
        "specificity": _recall(~is_positive, ~predicted_positive),
        "false_negatives": int((is_positive & ~predicted_positive).sum()),
        "false_positives": int((~is_positive & predicted_positive).sum()),
        "confusion_matrix": sk.confusion_matrix(labels, predicted, labels=every).tolist(),
        "per_class": _per_class(labels, predicted, classes),
    }


def _recall(truth: Any, predicted: Any, **options: Any) -> float | None:
    return _none_if_nan(sk.recall_score(truth, predicted, zero_division=np.nan, **options))


def _per_class(labels: Labels, predicted: Labels, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    rows = sk.precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), average=None, zero_division=np.nan
    )
    return {
        name: {"precision": _none_if_nan(p), "recall": _none_if_nan(r), "f1": _none_if_nan(f), "support": int(s)}
        for name, p, r, f, s in zip(classes, *rows, strict=True)
    }


def _ranking(
    probabilities: Floats, labels: Labels, classes: tuple[str, ...], positive: int
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return AUROC and average precision: of `positive` for two classes, else the one-vs-rest macro average."""
    chosen = ranked_classes(len(classes), positive)
    present = np.unique(labels)
    ranked = [c for c in chosen if c in present] if len(present) > 1 else []
    if not ranked:
        reason = f"undefined: all images of this split are {classes[present[0]]}"
        return {"auroc": None, "average_precision": None}, {"auroc": reason, "average_precision": reason}
    absent = [classes[c] for c in chosen if c not in present]
    reason = f"macro average without {', '.join(absent)}: {NO_IMAGES}"
    reasons = dict.fromkeys(("auroc", "average_precision"), reason) if absent else {}
    if not np.ptp(probabilities[:, ranked], axis=0).any():
        reasons.setdefault("auroc", "all images have the same score")
    means = {
        "auroc": np.mean([sk.roc_auc_score(labels == c, probabilities[:, c]) for c in ranked]),
        "average_precision": np.mean([sk.average_precision_score(labels == c, probabilities[:, c]) for c in ranked]),
    }
    return {name: float(value) for name, value in means.items()}, reasons


def _without_recall(labels: Labels, classes: tuple[str, ...]) -> dict[str, str]:
    """Return which classes the balanced accuracy leaves out, under its key; nothing if the split has all classes."""
    absent = [name for c, name in enumerate(classes) if c not in labels]
    return {"balanced_accuracy": f"mean recall without {', '.join(absent)}: {NO_IMAGES}"} if absent else {}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
