"""Compares a model with the classifiers of an audit on the images that both have scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.audit.regions import ModelRegions
from trainer.audit.saved import AuditScores
from trainer.evaluation.bootstrap import Floats, Labels
from trainer.evaluation.intervals import Interval
from trainer.evaluation.paired import paired_auroc


@dataclass(frozen=True, kw_only=True)
class ModelMinusCheck:
    """The AUROC of a model minus that of a check on the same images.

    Attributes:
        check: AUROC of the check on these images.
        model: AUROC of the model.
        difference: The model's minus the check's.
        interval: Its 95 % confidence interval, or None.
        images: Images that both have scored.
    """

    check: float
    model: float
    difference: float
    interval: Interval | None
    images: int


@dataclass(frozen=True, kw_only=True)
class AuditBesideModel:
    """A model beside the audit of the data set that judged it.

    Attributes:
        differences: By the name of the check, as far as both have scored images of two classes. A check that gives all
            of them one score is left out.
        regions: What the model does with rim and center; None if that was not measured.
    """

    differences: Mapping[str, ModelMinusCheck] = field(default_factory=dict)
    regions: ModelRegions | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "differences": {name: dict(vars(one)) for name, one in self.differences.items()},
            "regions": None
            if self.regions is None
            else {**vars(self.regions), "figures": [dict(vars(one)) for one in self.regions.figures]},
        }


def compare_with_checks(
    scores: AuditScores, samples: NDArray[np.uint8], probabilities: Floats, units: Labels, *, positive: int
) -> dict[str, ModelMinusCheck]:
    """Return what a model's AUROC is above that of each check, by the name of the check.

    Args:
        scores: Of the audit of the same data set.
        samples: (N, 16) uint8, identity of each image that the model has scored.
        probabilities: (N, classes) of the model.
        units: (N,) index of the group of each image.
        positive: Index of the class whose AUROC is meant if there are two.
    """
    row_of = {sample.tobytes(): row for row, sample in enumerate(scores.samples)}
    shared = [(mine, row_of[sample.tobytes()]) for mine, sample in enumerate(samples) if sample.tobytes() in row_of]
    if not shared:
        return {}
    mine, theirs = np.array(shared, dtype=np.int64).T
    labels = scores.labels[theirs]
    found = {
        name: _difference(of_check[theirs], probabilities[mine], labels, units[mine], positive=positive)
        for name, of_check in scores.scores.items()
    }
    return {name: one for name, one in found.items() if one is not None}


def _difference(
    check: Floats, model: Floats, labels: Labels, units: Labels, *, positive: int
) -> ModelMinusCheck | None:
    """Return the difference on the images that the check has scored; None if it has none, or gives all one score."""
    known = ~np.isnan(check).any(axis=1)
    if not known.any() or (check[known] == check[known][0]).all():
        return None
    groups = np.unique(units[known], return_inverse=True)[1]
    figure = paired_auroc(check[known], model[known], labels[known], groups, positive=positive)
    if figure.first is None or figure.second is None:
        return None
    return ModelMinusCheck(
        check=figure.first,
        model=figure.second,
        difference=figure.second - figure.first,
        interval=figure.interval,
        images=int(known.sum()),
    )
