"""The validation metrics that can choose the best model, and their directions."""

from typing import Literal

Metric = Literal["loss", "accuracy", "balanced_accuracy", "auroc"]

HIGHER_IS_BETTER: dict[str, bool] = {"loss": False, "accuracy": True, "balanced_accuracy": True, "auroc": True}
# By which two models are compared.
COMPARED = ("auroc", "accuracy", "balanced_accuracy", "sensitivity", "specificity")
MARGIN = 0.02  # of `nightshift compare`, unless another one is given


def is_better(value: float | None, other: float | None, metric: str) -> bool:
    """Return whether `value` is strictly better than `other`; None, an undefined metric, is worse than any number."""
    if value is None or other is None:
        return other is None and value is not None
    return value > other if HIGHER_IS_BETTER[metric] else value < other


def loss_of(value: float, metric: str) -> float:
    """Return `value` with the sign that makes lower better, for sorting and minimizing."""
    return -value if HIGHER_IS_BETTER[metric] else value
