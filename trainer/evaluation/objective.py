"""What differs between models of one class per image and models of several labels per image: loss, decisions, metrics.

Everything else treats labels as rows: `(N,)` classes, or `(N, C)` targets of 1 present, 0 absent and -1 unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor
from torch.nn import functional

from data_shards.index import ShardIndex
from trainer.evaluation.calibration import (
    Calibration,
    Floats,
    Labels,
    fit_calibration,
    predicted_classes,
    threshold_for_sensitivity,
)
from trainer.evaluation.multi_label_calibration import (
    apply_temperatures,
    choose_threshold,
    fit_label_calibration,
    label_decisions,
)
from trainer.evaluation.temperature import apply_temperature

IMBALANCE = 2.0  # ratio of the largest class to the smallest from which on the loss is weighted


class Objective(Protocol):
    """Loss, probabilities, decisions and metrics of one kind of labels."""

    def loss_weights(self, index: ShardIndex, split: str, weighted: bool | None) -> list[Any] | None:
        """Return the weights of the loss on a split, None for equal ones; `weighted` None means where it is needed."""

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Return the loss of each sample, `(B,)`, from logits `(B, C) float32`."""

    def probabilities(self, logits: Floats) -> Floats:
        """Return the probabilities `(N, C)` of logits `(N, C)`, before temperature scaling."""

    def calibrated(self, probabilities: Floats, calibration: Calibration, classes: tuple[str, ...]) -> Floats:
        """Return the probabilities after temperature scaling, `(N, C)`."""

    def decisions(
        self, calibrated: Floats, calibration: Calibration, classes: tuple[str, ...], positive: str | None = None
    ) -> Labels:
        """Return the decisions at the stored threshold: `(N,)` classes or `(N, C)` of 0 and 1."""

    def epoch_metrics(self, logits: Floats, labels: Labels) -> dict[str, Any]:
        """Return loss, accuracy, balanced accuracy and AUROC of a split, quickly."""

    def metrics(
        self,
        probabilities: Floats,
        labels: Labels,
        *,
        classes: tuple[str, ...],
        calibration: Calibration,
        positive: str | None,
        groups: Sequence[str],
        seed: int,
    ) -> dict[str, Any]:
        """Return all metrics of a split as `result.json` stores them."""

    def fit_calibration(
        self, probabilities: Floats, labels: Labels, *, data: str, classes: tuple[str, ...]
    ) -> Calibration:
        """Fit the temperature on the validation split."""

    def with_threshold(
        self,
        calibration: Calibration,
        probabilities: Floats,
        labels: Labels,
        *,
        classes: tuple[str, ...],
        positive: str,
        min_sensitivity: float,
    ) -> Calibration:
        """Choose a threshold on the validation split; `calibration` is the one stored beside the model."""


@dataclass(frozen=True)
class SingleLabel:
    """One class per image: softmax and cross-entropy."""

    def loss_weights(self, index: ShardIndex, split: str, weighted: bool | None) -> list[float] | None:
        """Return n / (classes x n of the class), whose mean over the training images is 1."""
        counts = index.per_class_in(split)
        if weighted is None:
            weighted = max(counts) > IMBALANCE * min(counts)
        return [sum(counts) / (len(counts) * n) for n in counts] if weighted else None

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Return the cross-entropy of each sample."""
        return functional.cross_entropy(logits, labels, weights, reduction="none")

    def probabilities(self, logits: Floats) -> Floats:
        """Return the softmax."""
        return np.asarray(softmax(logits, axis=1))

    def calibrated(self, probabilities: Floats, calibration: Calibration, classes: tuple[str, ...]) -> Floats:  # noqa: ARG002
        """Return the softmax of the logits over the temperature."""
        return apply_temperature(probabilities, calibration.temperature)

    def decisions(
        self, calibrated: Floats, calibration: Calibration, classes: tuple[str, ...], positive: str | None = None
    ) -> Labels:
        """Return the predicted class of each image, (N,); at the threshold if it was chosen for `positive`."""
        name = positive or calibration.positive
        if name is None:
            return predicted_classes(calibrated, positive=0, threshold=None)
        return predicted_classes(calibrated, positive=classes.index(name), threshold=calibration.threshold_for(name))

    def epoch_metrics(self, logits: Floats, labels: Labels) -> dict[str, Any]:
        """Return the metrics of an epoch."""
        from trainer.evaluation.epoch_metrics import epoch_metrics  # noqa: PLC0415 -- takes a second, and a prediction does not need it

        return epoch_metrics(logits, labels)

    def metrics(
        self,
        probabilities: Floats,
        labels: Labels,
        *,
        classes: tuple[str, ...],
        calibration: Calibration,
        positive: str | None,
        groups: Sequence[str],
        seed: int,
    ) -> dict[str, Any]:
        """Return the metrics; `positive` defaults to the class that the threshold was chosen for, else to none."""
        from trainer.evaluation.metrics import classification_metrics  # noqa: PLC0415 -- takes a second

        name = positive or calibration.positive
        threshold = None if name is None else calibration.threshold_for(name)
        found = classification_metrics(
            probabilities,
            labels,
            classes=classes,
            positive=name,
            threshold=threshold,
            temperature=calibration.temperature,
            groups=groups,
            seed=seed,
        )
        return found if threshold is None else {**found, "min_sensitivity": calibration.min_sensitivity}

    def fit_calibration(
        self,
        probabilities: Floats,
        labels: Labels,
        *,
        data: str,
        classes: tuple[str, ...],  # noqa: ARG002
    ) -> Calibration:
        """Fit one temperature."""
        return fit_calibration(probabilities, labels, data=data)

    def with_threshold(
        self,
        calibration: Calibration,
        probabilities: Floats,
        labels: Labels,
        *,
        classes: tuple[str, ...],
        positive: str,
        min_sensitivity: float,
    ) -> Calibration:
        """Choose the threshold of `positive`; the temperature stays."""
        threshold, reached = threshold_for_sensitivity(
            apply_temperature(probabilities, calibration.temperature),
            labels,
            positive=classes.index(positive),
            min_sensitivity=min_sensitivity,
            name=positive,
        )
        chosen = {"threshold": threshold, "min_sensitivity": min_sensitivity, "sensitivity": reached}
        return calibration.model_copy(update={"positive": positive, **chosen})


@dataclass(frozen=True)
class MultiLabel:
    """Several labels per image: sigmoids, and binary cross-entropy over the known targets."""

    def loss_weights(self, index: ShardIndex, split: str, weighted: bool | None) -> list[list[float]]:
        """Return the weights of absent and of present targets of each label, `[[C], [C]]`.

        The loss of an image is the weighted sum over its known targets. With the factor images / known targets the mean
        over the images is the mean over the known targets, whatever the batches and the number of workers. `weighted`
        gives the absent and the present targets of a label the same total weight.
        """
        counts = index.targets_in(split)
        images, known = index.samples_in(split), sum(n.present + n.absent for n in counts)
        if weighted is None:
            weighted = any(max(n[:2]) > IMBALANCE * min(n[:2]) for n in counts)
        each = images / known
        pairs = [_balanced_weights(n.absent, n.present) if weighted else (1.0, 1.0) for n in counts]
        return [[each * pair[state] for pair in pairs] for state in (0, 1)]

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Return the sum of the binary cross-entropies of each sample's known targets; weights are `(2, C)`."""
        present = labels.clamp(min=0)
        each = functional.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none")
        known = (labels >= 0).to(logits.dtype)
        if weights is not None:
            known = known * torch.where(present == 1, weights[1], weights[0])
        return (each * known).sum(dim=1)

    def probabilities(self, logits: Floats) -> Floats:
        """Return the sigmoids."""
        return np.asarray(expit(logits))

    def calibrated(self, probabilities: Floats, calibration: Calibration, classes: tuple[str, ...]) -> Floats:
        """Return the sigmoid of each logit over its label's temperature."""
        return apply_temperatures(probabilities, calibration, classes)

    def decisions(
        self,
        calibrated: Floats,
        calibration: Calibration,
        classes: tuple[str, ...],
        positive: str | None = None,  # noqa: ARG002 -- each label has its own threshold
    ) -> Labels:
        """Return which labels are predicted, (N, C) of 0 and 1."""
        return label_decisions(calibrated, calibration, classes)

    def epoch_metrics(self, logits: Floats, labels: Labels) -> dict[str, Any]:
        """Return the metrics of an epoch."""
        from trainer.evaluation.multi_label_metrics import multi_label_epoch_metrics  # noqa: PLC0415 -- takes a second, and a prediction does not need it

        return multi_label_epoch_metrics(logits, labels)

    def metrics(
        self,
        probabilities: Floats,
        labels: Labels,
        *,
        classes: tuple[str, ...],
        calibration: Calibration,
        positive: str | None,
        groups: Sequence[str],
        seed: int,
    ) -> dict[str, Any]:
        """Return the metrics of each label, and their macro and micro means."""
        from trainer.evaluation.multi_label_metrics import multi_label_metrics  # noqa: PLC0415 -- takes a second, and a prediction does not need it

        return multi_label_metrics(
            probabilities,
            labels,
            classes=classes,
            calibration=calibration,
            positive=positive,
            groups=groups,
            seed=seed,
        )

    def fit_calibration(
        self, probabilities: Floats, labels: Labels, *, data: str, classes: tuple[str, ...]
    ) -> Calibration:
        """Fit a temperature for each label."""
        return fit_label_calibration(probabilities, labels, data=data, classes=classes)

    def with_threshold(
        self,
        calibration: Calibration,
        probabilities: Floats,
        labels: Labels,
        *,
        classes: tuple[str, ...],
        positive: str,
        min_sensitivity: float,
    ) -> Calibration:
        """Choose the threshold of the label `positive`; those of the other labels stay."""
        return choose_threshold(
            calibration,
            probabilities,
            labels,
            classes=classes,
            label=positive,
            min_sensitivity=min_sensitivity,
        )


SINGLE_LABEL, MULTI_LABEL = SingleLabel(), MultiLabel()


def objective_of(multi_label: bool) -> Objective:
    """Return the objective of a data set's or a model's labels."""
    return MULTI_LABEL if multi_label else SINGLE_LABEL


def _balanced_weights(absent: int, present: int) -> tuple[float, float]:
    """Return the weights of absent and present targets with equal totals and a mean of 1; 1 where one has no image."""
    if not (absent and present):
        return 1.0, 1.0
    return (absent + present) / (2 * absent), (absent + present) / (2 * present)
