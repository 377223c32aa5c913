"""Linear heads on the features of a frozen backbone: discriminant analysis and logistic regression of scikit-learn.

Both are fitted on standardized features. The result is a `LinearHead`: one matrix, so that the published model is a
single network. They serve as heads of their own (`train --head`), and as baselines beside a trained head.
"""

# ruff: noqa: ARG002 -- the arguments are scikit-learn's

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, solve
from scipy.special import logit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from trainer.data.split_features import FeatureRows, StoredRows
from trainer.errors import SpecError, TrainerError
from trainer.model.efficientnet import LinearHead
from trainer.specs.train import HeadKind

PENALTY = 1.0  # C of scikit-learn: its default, the inverse strength of the L2 penalty on standardized features
MOST_ITERATIONS = 1000
# Up to so many images, BLAS uses one thread: matrices of 1,280 columns gain little from several, and on a busy machine
# the threads wait for each other: 0.6 s instead of 0.07, measured on two cores under a load of 9.
FEW_IMAGES = 5000

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LinearTask:
    """What a linear head is fitted on.

    Attributes:
        features: `(N, F) float64`.
        labels: `(N,) int64` classes, or `(N, C) int64` targets of several labels: 1 present, 0 absent, -1 unknown.
        classes: Class names.
        weights: Weights of the loss, as `Objective.loss_weights` returns them; None for equal ones.
        on_step: Called between two steps of the fit; what it raises ends the fit.
    """

    features: Floats
    labels: Labels
    classes: tuple[str, ...]
    weights: Floats | None
    on_step: Callable[[], None] = lambda: None

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return self.labels.ndim > 1


@dataclass(frozen=True, kw_only=True)
class LinearFunction:
    """Logits `features @ coefficients.T + intercepts`: (C, F) and (C,)."""

    coefficients: Floats
    intercepts: Floats


def fit_linear_head(kind: HeadKind, task: LinearTask) -> LinearHead:
    """Return the fitted head, on the CPU.

    Raises:
        SpecError: Discriminant analysis of several labels an image, or a class without images.
        TrainerError: The features are the same for all images.
        Exception: Raised by the task's `on_step`.
    """
    if not task.multi_label:
        _require_every_class(task)
    elif kind == "lda":
        raise SpecError("--head lda needs one class an image, and the data set has several labels; use --head logistic")
    with threadpool_limits(1 if len(task.labels) <= FEW_IMAGES else None, user_api="blas"):
        scaler = StandardScaler().fit(task.features)
        task.on_step()
        found = _fit_of(kind, task)(scaler.transform(task.features), task)
    return _as_head(scaler, found)


def _fit_of(kind: HeadKind, task: LinearTask) -> Callable[[Floats, LinearTask], LinearFunction]:
    if kind == "lda":
        return _discriminant_analysis
    return _logistic_regressions if task.multi_label else _logistic_regression


def _require_every_class(task: LinearTask) -> None:
    counts = np.bincount(task.labels, minlength=len(task.classes))
    if missing := [name for name, count in zip(task.classes, counts, strict=True) if not count]:
        raise SpecError(f"there is no image of {', '.join(missing)} to train on; pack the data set with some")


def _discriminant_analysis(rows: Floats, task: LinearTask) -> LinearFunction:
    """Return the linear discriminant analysis with the shrinkage of Ledoit & Wolf 2004 in the covariance of each class.

    The same as scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")`, which decomposes matrices
    of 1,280 columns for each class, and takes 2.5 s for 10 classes instead of 0.1. Class weights multiply the priors.
    """
    count = len(task.classes)
    priors = np.bincount(task.labels, minlength=count) * (1.0 if task.weights is None else task.weights)
    priors = priors / priors.sum()
    members = [rows[task.labels == c] for c in range(count)]
    means = np.stack([of_class.mean(axis=0) for of_class in members])
    shrunk = [_shrunk_covariance(of_class, task.on_step) for of_class in members]
    factor = np.concatenate([root * prior**0.5 for prior, (root, _) in zip(priors, shrunk, strict=True)])
    task.on_step()
    covariance = factor.T @ factor
    covariance[np.diag_indices_from(covariance)] += sum(
        prior * diagonal for prior, (_, diagonal) in zip(priors, shrunk, strict=True)
    )
    try:
        coefficients = solve(covariance, means.T, assume_a="pos").T
    except LinAlgError as error:
        raise TrainerError(
            "--head lda cannot be fitted: the images of each class have the same features; check the images"
        ) from error
    return LinearFunction(coefficients=coefficients, intercepts=np.log(priors) - (means * coefficients).sum(axis=1) / 2)


def _shrunk_covariance(rows: Floats, on_step: Callable[[], None]) -> tuple[Floats, Floats]:
    """Return a root (n, F) and a diagonal (F,) of the shrunk covariance of one class, `root.T @ root + diag(diagonal)`.

    It is shrunk on the scale of unit variances. That of one image is 0.
    """
    on_step()
    if len(rows) == 1:
        return np.zeros_like(rows), np.zeros(rows.shape[1])
    scaler = StandardScaler().fit(rows)
    scaled = scaler.transform(rows)
    shrinkage, variance = ledoit_wolf_shrinkage(scaled)
    root = scaled * scaler.scale_ * ((1 - shrinkage) / len(rows)) ** 0.5
    return root, shrinkage * variance * scaler.scale_**2


def ledoit_wolf_shrinkage(rows: Floats) -> tuple[float, float]:
    """Return the shrinkage of the covariance of centred rows (n, F), and the mean variance that it is shrunk towards.

    Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", as in scikit-learn,
    whose function multiplies matrices of (F, F); here the smaller one of (n, n) and (F, F).
    """
    count, features = rows.shape
    squares = np.square(rows)
    variance = float(squares.sum()) / count / features
    gram = rows @ rows.T if count < features else rows.T @ rows
    norm = float(np.square(gram).sum()) / count**2  # squared Frobenius norm of the covariance
    error = (float(np.square(squares.sum(axis=1)).sum()) / count - norm) / (features * count)
    distance = norm / features - variance**2
    error = min(error, distance)
    return (0.0 if error <= 0 else error / distance), variance


def _logistic_regression(rows: Floats, task: LinearTask) -> LinearFunction:
    """Return the logistic regression of one class an image: multinomial, or for two classes binary."""
    weights = None if task.weights is None else task.weights[task.labels]
    model = _fitted(rows, task.labels, weights, task.on_step)
    if len(task.classes) > 2:  # noqa: PLR2004
        return LinearFunction(coefficients=model.coef_, intercepts=model.intercept_)
    return LinearFunction(
        coefficients=np.concatenate([np.zeros_like(model.coef_), model.coef_]),
        intercepts=np.concatenate([[0.0], model.intercept_]),
    )


def _logistic_regressions(rows: Floats, task: LinearTask) -> LinearFunction:
    """Return a logistic regression for each label, on the images of which the label is known."""
    found = [_of_label(rows, task, position) for position in range(len(task.classes))]
    return LinearFunction(
        coefficients=np.concatenate([one.coefficients for one in found]),
        intercepts=np.concatenate([one.intercepts for one in found]),
    )


def _of_label(rows: Floats, task: LinearTask, position: int) -> LinearFunction:
    targets = task.labels[:, position]
    known = targets >= 0
    targets = targets[known]
    present, total = int(targets.sum()), len(targets)
    if not 0 < present < total:  # a constant: the share of images that have the label, from which half an image is kept
        share = logit((present + 0.5) / (total + 1))
        return LinearFunction(coefficients=np.zeros((1, rows.shape[1])), intercepts=np.array([share]))
    weights = None if task.weights is None else task.weights[targets, position]
    model = _fitted(rows[known], targets, weights, task.on_step)
    return LinearFunction(coefficients=model.coef_, intercepts=model.intercept_)


class _AfterEachIteration:
    """A callback of scikit-learn, whose fits call it by the names of these methods."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self.on_step = on_step

    def setup(self, estimator: Any, context: Any) -> None:
        pass

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        pass

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        self.on_step()

    def teardown(self, estimator: Any, context: Any) -> None:
        pass


def _fitted(rows: Floats, labels: Labels, weights: Floats | None, on_step: Callable[[], None]) -> LogisticRegression:
    """Return the fitted regression; weights are scaled to a mean of 1, so that the penalty keeps its strength."""
    model = LogisticRegression(C=PENALTY, max_iter=MOST_ITERATIONS).set_callbacks(_AfterEachIteration(on_step))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(rows, labels, sample_weight=None if weights is None else weights / weights.mean())
    if any(issubclass(one.category, ConvergenceWarning) for one in caught):
        logger.warning("the logistic regression did not converge in %d iterations", MOST_ITERATIONS)
    return model


def _as_head(scaler: StandardScaler, found: LinearFunction) -> LinearHead:
    head = LinearHead(*found.coefficients.shape)
    tensors = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "output.weight": found.coefficients,
        "output.bias": found.intercepts,
    }
    head.load_state_dict({name: torch.from_numpy(np.asarray(value)).float() for name, value in tensors.items()})
    return head.requires_grad_(False).eval()


def as_task(
    features: FeatureRows,
    labels: Tensor,
    classes: tuple[str, ...],
    weights: Tensor | None,
    on_step: Callable[[], None] = lambda: None,
) -> LinearTask:
    """Return the task of features and labels in the form in which trainings hold them, on any device."""
    return LinearTask(
        features=features.as_float64()
        if isinstance(features, StoredRows)
        else features.cpu().numpy().astype(np.float64),
        labels=labels.cpu().numpy(),
        classes=classes,
        weights=None if weights is None else weights.cpu().numpy().astype(np.float64),
        on_step=on_step,
    )
