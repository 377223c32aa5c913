"""Baselines of a training with a frozen backbone: linear heads on the same features, beside the head that is published.

A head that is no better than a linear function of the features is not shown to have learnt more than they show by
themselves. Nothing is chosen by the baselines, and they are not published; `train --head` publishes one.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.split_features import FeatureRows, SplitFeatures
from trainer.errors import Stopped, TrainerError
from trainer.evaluation.bootstrap import ranked_classes
from trainer.evaluation.calibration import Calibration
from trainer.evaluation.intervals import auroc_interval, group_ids, interval_json, proportion_interval
from trainer.evaluation.scoring import ModelOutputs, epoch_metrics, split_metrics
from trainer.evaluation.training_text import FIGURES, SHOWN
from trainer.specs.train import HeadKind
from trainer.training.fold_assignment import rarest_label
from trainer.training.head_fit import Floats, HeadFit, head_logits, head_outputs

MOST_IMAGES = 20_000  # a sample of more: the fit takes seconds, and more images hardly change 1,281 numbers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What one linear head reaches on the images that the published head is judged on.

    Attributes:
        head: How it was fitted.
        images: Number of images that it was fitted on; of a cross-validation the least over the folds.
        figures: What `figures_before_scaling` returned.
    """

    head: HeadKind
    images: int
    figures: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the baseline as `result.json` stores it."""
        return {"head": self.head, "images": self.images, **self.figures}

    @classmethod
    def of(cls, head: HeadKind, outputs: ModelOutputs, fit: HeadFit, *, images: int) -> "Baseline":
        """Return the figures of a baseline's outputs on a split."""
        metrics: Mapping[str, Any] = {}
        if fit.config.multi_label:
            metrics = split_metrics(outputs, fit.config.classes, Calibration(), "", seed=fit.spec.seed)
        return cls(head=head, images=images, figures=figures_before_scaling(outputs, metrics))


def figures_before_scaling(outputs: ModelOutputs, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that heads are compared by: no temperature is fitted on the images that judge them.

    Args:
        outputs: Of a head on the images that it is judged on.
        metrics: What `split_metrics` returned for outputs of several labels per image, at any temperatures: they change
            neither the order of a label's scores nor its decisions, so both intervals stay. Not read for one class.

    Returns:
        AUROC, accuracy and loss, None where undefined, and `intervals`: 95 % confidence intervals of the first two.
    """
    figures = epoch_metrics(outputs)
    is_multi_label = outputs.labels.ndim > 1
    intervals = (
        {name: metrics["intervals"].get(name) for name in SHOWN} if is_multi_label else _quick_intervals(outputs)
    )
    return {**{name: figures[name] for name in FIGURES}, "intervals": intervals}


def _quick_intervals(outputs: ModelOutputs) -> dict[str, list[float] | None]:
    """Return the intervals of one class per image that need no bootstrap: of the accuracy, and DeLong's of AUROC."""
    probabilities, labels = outputs.probabilities(), outputs.labels
    units = group_ids(outputs.groups, len(labels))
    scored = [(probabilities[:, c], labels == c) for c in ranked_classes(probabilities.shape[1], 0)]
    found = {
        "auroc": auroc_interval(scored, units),
        "accuracy": proportion_interval(probabilities.argmax(axis=1) == labels, units),
    }
    return {name: interval_json(interval) for name, interval in found.items()}


def baselines_on_split(fit: HeadFit, train: SplitFeatures, scored: SplitFeatures) -> list[Baseline]:
    """Return the figures of linear heads that are fitted on a split and scored on another.

    Args:
        fit: Of the published head.
        train: Features of the split to fit on.
        scored: Features of the split to score.
    """
    found = {kind: linear_logits(fit, kind, train.values, train.labels, scored.values) for kind in fit.baseline_kinds}
    return [
        Baseline.of(kind, head_outputs(fit, scored, logits), fit, images=min(len(train.labels), MOST_IMAGES))
        for kind, logits in found.items()
        if logits is not None
    ]


def linear_logits(
    fit: HeadFit, kind: HeadKind, values: FeatureRows, labels: Tensor, scored: FeatureRows
) -> Floats | None:
    """Return the logits `(n, C)` of a linear head for features `scored`; None, with a log line, if it cannot be fitted.

    It is fitted on features `values (N, 1280) float32` and `labels`, or on `MOST_IMAGES` of them.

    Raises:
        Stopped: The run was asked to stop.
    """
    rows = sample_rows(labels, fit.spec.seed)
    try:
        head = fit.of_kind(kind).fit(values[rows], labels[rows], seed=fit.spec.seed)
    except Stopped:
        raise
    except TrainerError as error:
        logger.warning("no baseline %s: %s", kind, error)
        return None
    return head_logits(head, scored.to(fit.device))


def sample_rows(labels: Tensor, seed: int, *, most: int = MOST_IMAGES) -> Tensor:
    """Return the rows to fit on, in ascending order: all, or a random sample stratified by class.

    Of each class it has the same share, and at least one image.

    Args:
        labels: `(N,)` classes, or `(N, C)` targets: then the strata are by the rarest label that an image has.
        seed: Random seed.
        most: The number of rows if there are more.
    """
    count = len(labels)
    if count <= most:
        return torch.arange(count)
    order = np.random.default_rng(seed).permutation(count)
    targets = labels.numpy()
    strata = (targets if targets.ndim == 1 else rarest_label(targets))[order]
    share = np.empty(count)  # of its stratum that comes before a row
    for stratum in np.unique(strata):
        places = np.flatnonzero(strata == stratum)
        share[places] = np.arange(len(places)) / len(places)
    return torch.from_numpy(np.sort(order[np.argsort(share, kind="stable")[:most]]))
