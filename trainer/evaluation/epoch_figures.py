"""The few figures that an epoch is judged by: the whole table would take longer than the epoch of a head."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import auc, roc_curve
from torch.nn import functional

from trainer.evaluation.scoring import Scored


def epoch_figures(result: Scored) -> dict[str, Any]:
    """Return loss, accuracy, balanced accuracy and AUROC of a split as `score` does, eight times faster.

    Classes are called by position; AUROC is that of class 0 with two classes, else the mean of one against the rest.
    """
    if not np.isfinite(result.logits).all():
        return {"loss": float("nan"), "accuracy": 0.0, "balanced_accuracy": None, "auroc": None}
    logits, labels = torch.from_numpy(result.logits), torch.from_numpy(result.labels)
    called = logits.argmax(dim=1)
    return {
        "loss": float(functional.cross_entropy(logits, labels)),
        "accuracy": float((called == labels).double().mean()),
        "balanced_accuracy": _balanced(labels, called),
        "auroc": _auroc(torch.softmax(logits, dim=1), labels),
    }


def _balanced(labels: torch.Tensor, called: torch.Tensor) -> float:
    recalls = [float((called[labels == c] == c).double().mean()) for c in _present(labels)]
    return sum(recalls) / len(recalls)


def _auroc(probabilities: torch.Tensor, labels: torch.Tensor) -> float | None:
    count = probabilities.shape[1]
    present = _present(labels)
    chosen = [c for c in ([0] if count == 2 else range(count)) if c in present]  # noqa: PLR2004
    if not chosen or len(present) == 1:
        return None
    return sum(_area(labels == c, probabilities[:, c]) for c in chosen) / len(chosen)


def _area(truth: torch.Tensor, scores: torch.Tensor) -> float:
    false_rate, true_rate, _ = roc_curve(truth.numpy(), scores.numpy(), drop_intermediate=False)
    return float(auc(false_rate, true_rate))


def _present(labels: torch.Tensor) -> list[int]:
    return sorted(set(labels.tolist()))
