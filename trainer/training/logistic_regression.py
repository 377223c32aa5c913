"""Logistic regression with an L2 penalty: scikit-learn's, and for many images one that reads them in chunks.

Both minimize the same function by the same method, L-BFGS of SciPy, with the same tolerances.
"""

# ruff: noqa: ARG002 -- the arguments are scikit-learn's

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from trainer.training.feature_chunks import FeatureChunks, Floats, Numbers
from trainer.training.linear_function import LinearFunction

PENALTY = 1.0  # C of scikit-learn: its default, the inverse strength of the L2 penalty on standardized features
MOST_ITERATIONS = 1000
MOST_IN_MEMORY = 50_000  # images for scikit-learn, which takes them all at once: 0.5 GB of features
# Those that scikit-learn gives to SciPy with its own default tolerance.
LBFGS = {"maxiter": MOST_ITERATIONS, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}

logger = logging.getLogger(__name__)


def logistic_regression(rows: FeatureChunks, labels: Numbers, classes: int, weights: Floats | None) -> LinearFunction:
    """Return the logistic regression of one class per image: multinomial, or for two classes binary.

    Args:
        rows: `(N, F)`, standardized.
        labels: `(N,)`; each class has an image.
        classes: Number of classes.
        weights: Of the classes; None for equal ones.

    Raises:
        Exception: Raised by `on_step` of the rows.
    """
    of_rows = None if weights is None else weights[labels]
    if classes > 2:  # noqa: PLR2004
        if len(rows) <= MOST_IN_MEMORY:
            return _by_scikit_learn(rows.whole(), labels, of_rows, rows.on_step)
        return _by_chunks(rows, _ClassLosses.of(labels, classes, of_rows))
    found = _binary(rows, labels[:, None], None if of_rows is None else of_rows[:, None])
    return LinearFunction(
        coefficients=np.concatenate([np.zeros_like(found.coefficients), found.coefficients]),
        intercepts=np.concatenate([[0.0], found.intercepts]),
    )


def logistic_regressions(rows: FeatureChunks, targets: Numbers, weights: Floats | None) -> LinearFunction:
    """Return a logistic regression for each label, on the images of which the label is known.

    That of a label that all of these have, or none, is a constant: the share of them that have it, from which half an
    image is kept.

    Args:
        rows: `(N, F)`, standardized.
        targets: `(N, C)`: 1 present, 0 absent, -1 unknown.
        weights: Of absent and of present targets, `(2, C)`; None for equal ones.

    Raises:
        Exception: Raised by `on_step` of the rows.
    """
    present, known = (targets == 1).sum(axis=0), (targets >= 0).sum(axis=0)
    fitted = np.flatnonzero((present > 0) & (present < known))
    coefficients = np.zeros((targets.shape[1], rows.columns))
    intercepts = logit((present + 0.5) / (known + 1))
    if len(fitted):
        of_rows = None if weights is None else np.where(targets == 1, weights[1], weights[0])[:, fitted]
        found = _binary(rows, targets[:, fitted], of_rows)
        coefficients[fitted], intercepts[fitted] = found.coefficients, found.intercepts
    return LinearFunction(coefficients=coefficients, intercepts=intercepts)


def _binary(rows: FeatureChunks, targets: Numbers, weights: Floats | None) -> LinearFunction:
    """Return the binary regression for each column of targets `(N, K)`: 1, 0, or -1 where it is not known."""
    if len(rows) > MOST_IN_MEMORY:
        return _by_chunks(rows, _TargetLosses.of(targets, weights))
    features, found = rows.whole(), []
    for column, of_column in enumerate(targets.T):
        known = of_column >= 0
        of_rows = None if weights is None else weights[known, column]
        of_known = features if known.all() else features[known]
        found.append(_by_scikit_learn(of_known, of_column[known], of_rows, rows.on_step))
    return LinearFunction(
        coefficients=np.concatenate([one.coefficients for one in found]),
        intercepts=np.concatenate([one.intercepts for one in found]),
    )


@dataclass(frozen=True)
class _ClassLosses:
    """The cross-entropy of classes.

    Attributes:
        shares: Of the images in the mean, `(N,)`.
        penalties: Strength of the penalty on the coefficients of each class, `(C,)`.
    """

    labels: Numbers
    shares: Floats
    penalties: Floats

    @classmethod
    def of(cls, labels: Numbers, classes: int, weights: Floats | None) -> "_ClassLosses":
        shares = np.full(len(labels), 1 / len(labels)) if weights is None else weights / weights.sum()
        return cls(labels, shares, np.full(classes, 1 / (PENALTY * len(labels))))

    def of_chunk(self, logits: Floats, places: slice) -> tuple[float, Floats]:
        """Return the loss of the images at these places and its gradient by their logits `(n, C)`."""
        labels, shares = self.labels[places], self.shares[places]
        log_p = log_softmax(logits, axis=1)
        each = np.arange(len(labels))
        gradient = np.exp(log_p)
        gradient[each, labels] -= 1
        return -float(shares @ log_p[each, labels]), gradient * shares[:, None]


@dataclass(frozen=True)
class _TargetLosses:
    """The sum of the binary cross-entropies of targets.

    Attributes:
        targets: `(N, K)`, 1 or 0; any where unknown.
        shares: Of the images in the mean of each target, `(N, K)`; 0 where it is unknown.
        penalties: Strength of the penalty on the coefficients of each target, `(K,)`.
    """

    targets: Numbers
    shares: Floats
    penalties: Floats

    @classmethod
    def of(cls, targets: Numbers, weights: Floats | None) -> "_TargetLosses":
        known = targets >= 0
        counted = np.where(known, 1.0 if weights is None else weights, 0.0)
        return cls(targets, counted / counted.sum(axis=0), 1 / (PENALTY * known.sum(axis=0)))

    def of_chunk(self, logits: Floats, places: slice) -> tuple[float, Floats]:
        """Return the loss of the images at these places and its gradient by their logits `(n, K)`."""
        targets, shares = self.targets[places], self.shares[places]
        losses = np.logaddexp(0, logits) - targets * logits
        return float((shares * losses).sum()), shares * (expit(logits) - targets)


def _by_chunks(rows: FeatureChunks, losses: _ClassLosses | _TargetLosses) -> LinearFunction:
    """Return the function with the least penalized loss; all rows are read for each value of the loss."""
    outputs, features = len(losses.penalties), rows.columns

    def function_of(flat: Floats) -> LinearFunction:
        found = flat.reshape(outputs, features + 1)
        return LinearFunction(coefficients=found[:, :-1], intercepts=found[:, -1])

    def loss(flat: Floats) -> tuple[float, Floats]:
        """Return the loss and its gradient."""
        function = function_of(flat)
        strong = losses.penalties[:, None] * function.coefficients
        total, gradient = float((strong * function.coefficients).sum()) / 2, np.zeros((outputs, features + 1))
        gradient[:, :-1] = strong
        for places, chunk in rows:
            part, by_logits = losses.of_chunk(chunk @ function.coefficients.T + function.intercepts, places)
            total += part
            gradient[:, :-1] += by_logits.T @ chunk
            gradient[:, -1] += by_logits.sum(axis=0)
        return total, gradient.ravel()

    found = minimize(loss, np.zeros(outputs * (features + 1)), method="L-BFGS-B", jac=True, options=LBFGS)
    if not found.success:
        _warn_not_converged(found.nit)
    return function_of(found.x)


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


def _by_scikit_learn(
    rows: Floats, labels: Numbers, weights: Floats | None, on_step: Callable[[], None]
) -> LinearFunction:
    """Return the fitted regression; weights are scaled to a mean of 1, so that the penalty keeps its strength."""
    model = LogisticRegression(C=PENALTY, max_iter=MOST_ITERATIONS).set_callbacks(_AfterEachIteration(on_step))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(rows, labels, sample_weight=None if weights is None else weights / weights.mean())
    if any(issubclass(one.category, ConvergenceWarning) for one in caught):
        _warn_not_converged(int(model.n_iter_.max()))
    return LinearFunction(coefficients=model.coef_, intercepts=model.intercept_)


def _warn_not_converged(iterations: int) -> None:
    logger.warning("the logistic regression did not converge in %d iterations", iterations)
