"""Linear heads on the features of a frozen backbone: discriminant analysis and logistic regression.

Both are fitted on standardized features. The result is a `LinearHead`: one matrix, so that the published model is a
single network. They serve as heads of their own (`train --head`), and as baselines beside a trained head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from trainer.data.split_features import FeatureRows
from trainer.errors import SpecError
from trainer.model.efficientnet import LinearHead
from trainer.specs.train import HeadKind
from trainer.training.discriminant_analysis import discriminant_analysis
from trainer.training.feature_chunks import FeatureChunks, Floats
from trainer.training.linear_function import LinearFunction
from trainer.training.logistic_regression import logistic_regression, logistic_regressions

# Up to so many images, BLAS uses one thread: matrices of 1,280 columns gain little from several, and on a busy machine
# the threads wait for each other: 0.6 s instead of 0.07, measured on two cores under a load of 9.
FEW_IMAGES = 5000

Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LinearTask:
    """What a linear head is fitted on.

    Attributes:
        features: `(N, F)`.
        labels: `(N,) int64` classes, or `(N, C) int64` targets of several labels: 1 present, 0 absent, -1 unknown.
        classes: Class names.
        weights: Weights of the loss, as `Objective.loss_weights` returns them; None for equal ones.
        on_step: Called between two steps of the fit; what it raises ends the fit.
    """

    features: FeatureRows
    labels: Labels
    classes: tuple[str, ...]
    weights: Floats | None
    on_step: Callable[[], None] = lambda: None

    @classmethod
    def of(
        cls,
        features: FeatureRows,
        labels: Tensor,
        classes: tuple[str, ...],
        weights: Tensor | None,
        on_step: Callable[[], None] = lambda: None,
    ) -> "LinearTask":
        """Return the task of features and labels in the form in which trainings hold them, on any device."""
        found = None if weights is None else weights.cpu().numpy().astype(np.float64)
        return cls(features=features, labels=labels.cpu().numpy(), classes=classes, weights=found, on_step=on_step)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return self.labels.ndim > 1


def fit_linear_head(kind: HeadKind, task: LinearTask) -> LinearHead:
    """Return the fitted head, on the CPU. Of many images, only labels and weights are in memory as a whole.

    Raises:
        SpecError: Discriminant analysis of several labels per image, or a class without images.
        TrainerError: The features are the same for all images.
        Exception: Raised by the task's `on_step`.
    """
    if not task.multi_label:
        _require_every_class(task)
    elif kind == "lda":
        raise SpecError(
            "--head lda needs one class per image, and the data set has several labels; use --head logistic"
        )
    with threadpool_limits(1 if len(task.labels) <= FEW_IMAGES else None, user_api="blas"):
        rows = FeatureChunks(task.features, task.on_step).standardized()
        return _as_head(rows.scaler, _fitted(kind, rows, task))


def _fitted(kind: HeadKind, rows: FeatureChunks, task: LinearTask) -> LinearFunction:
    if task.multi_label:
        return logistic_regressions(rows, task.labels, task.weights)
    if kind == "lda":
        return discriminant_analysis(rows, task.labels, len(task.classes), task.weights)
    return logistic_regression(rows, task.labels, len(task.classes), task.weights)


def _require_every_class(task: LinearTask) -> None:
    counts = np.bincount(task.labels, minlength=len(task.classes))
    if missing := [name for name, count in zip(task.classes, counts, strict=True) if not count]:
        raise SpecError(f"there is no image of {', '.join(missing)} to train on; pack the data set with some")


def _as_head(scaler: StandardScaler | None, found: LinearFunction) -> LinearHead:
    assert scaler is not None  # noqa: S101 -- the rows are standardized
    head = LinearHead(*found.coefficients.shape)
    tensors = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "output.weight": found.coefficients,
        "output.bias": found.intercepts,
    }
    head.load_state_dict({name: torch.from_numpy(np.asarray(value)).float() for name, value in tensors.items()})
    return head.requires_grad_(False).eval()
