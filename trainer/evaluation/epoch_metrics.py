"""The metrics of one class per image after each epoch of a training, computed quickly."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def epoch_metrics(all_logits: NDArray[np.float64], all_labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return loss, accuracy, balanced accuracy and AUROC of a split as `classification_metrics`, many times faster.

    AUROC is that of class 0 for two classes, else the one-vs-rest macro average. Non-finite logits give a NaN loss.
    """
    if not np.isfinite(all_logits).all():
        return {"loss": float("nan"), "accuracy": 0.0, "balanced_accuracy": None, "auroc": None}
    logits, labels = torch.from_numpy(all_logits), torch.from_numpy(all_labels)
    predicted = logits.argmax(dim=1)
    return {
        "loss": float(functional.cross_entropy(logits, labels)),
        "accuracy": float((predicted == labels).double().mean()),
        "balanced_accuracy": _balanced_accuracy(labels, predicted),
        "auroc": _auroc(torch.softmax(logits, dim=1), labels),
    }


def _balanced_accuracy(labels: Tensor, predicted: Tensor) -> float:
    recalls = [float((predicted[labels == c] == c).double().mean()) for c in _present(labels)]
    return sum(recalls) / len(recalls)


def _auroc(probabilities: Tensor, labels: Tensor) -> float | None:
    count = probabilities.shape[1]
    present = _present(labels)
    chosen = [c for c in ([0] if count == 2 else range(count)) if c in present]  # noqa: PLR2004
    if not chosen or len(present) == 1:
        return None
    return sum(_area(labels == c, probabilities[:, c]) for c in chosen) / len(chosen)


def _area(truth: Tensor, scores: Tensor) -> float:
    """Return the share of pairs of a positive and a negative that are in the right order; a tie counts half."""
    _, place, counts = np.unique(scores.numpy(), return_inverse=True, return_counts=True)
    positives = np.bincount(place, weights=truth.numpy())
    negatives = counts - positives
    below = np.cumsum(negatives) - negatives
    return float(positives @ (below + negatives / 2) / (positives.sum() * negatives.sum()))


def _present(labels: Tensor) -> list[int]:
    return sorted(set(labels.tolist()))
