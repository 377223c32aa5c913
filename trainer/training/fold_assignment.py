"""Divides images into folds: stratified by class, with all images of a group in one fold."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from data_shards.targets import PRESENT
from trainer.errors import SpecError
from trainer.evaluation.intervals import group_ids

Labels = NDArray[np.int64]


def assign_folds(
    labels: Labels, groups: Sequence[str], *, folds: int, seed: int, classes: tuple[str, ...]
) -> NDArray[np.int64]:
    """Return the fold of each image, `(N,) int64`, by scikit-learn's `StratifiedGroupKFold`.

    Args:
        labels: `(N,)` classes, or `(N, C)` targets of several labels: these are stratified by the rarest label that an
            image has.
        groups: Patient or case of each image, "" where unknown: such an image is its own group.
        folds: Number of folds.
        seed: Random seed.
        classes: Class names.

    Raises:
        SpecError: There are fewer groups than folds, in all or of a class; or a class is in one fold alone.
    """
    units = group_ids(groups, len(labels))
    strata = labels if labels.ndim == 1 else rarest_label(labels)
    if labels.ndim == 1:
        _require_groups_of_classes(labels, units, folds, classes)
    elif len(np.unique(units)) < folds:
        raise SpecError(f"--folds {folds} needs {folds} groups, and train and valid have {len(np.unique(units))}")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a combination of labels has fewer images than folds
        for fold, (_, scored) in enumerate(splitter.split(np.zeros(len(labels)), strata, units)):
            found[scored] = fold
    if labels.ndim == 1:
        _require_classes_outside(labels, found, folds, classes)
    return found


def rarest_label(targets: Labels) -> Labels:
    """Return the position of the rarest label that each image has, (N,); the number of labels for an image of none."""
    present = targets == PRESENT
    counts = np.where(present, present.sum(axis=0), len(targets) + 1)
    rarest: Labels = np.where(present.any(axis=1), counts.argmin(axis=1), targets.shape[1]).astype(np.int64)
    return rarest


def _require_groups_of_classes(labels: Labels, units: Labels, folds: int, classes: tuple[str, ...]) -> None:
    for label, name in enumerate(classes):
        count = len(np.unique(units[labels == label]))
        if count < folds:
            noun = "group" if count == 1 else "groups"
            cure = f"use --folds {count} or less" if count > 1 else "pack more, or leave out --folds"
            raise SpecError(
                f"--folds {folds} needs {folds} groups of each class, and train and valid have {count} {noun} of "
                f"{name}; {cure}"
            )


def _require_classes_outside(labels: Labels, assigned: Labels, folds: int, classes: tuple[str, ...]) -> None:
    """Refuse folds without which a class has no image: groups with images of several classes can lead to them."""
    for fold in range(folds):
        outside = np.bincount(labels[assigned != fold], minlength=len(classes))
        if not outside.all() or not (assigned == fold).any():
            raise SpecError(
                f"--folds {folds} puts all images of {classes[int(outside.argmin())]} into one fold, because they are "
                "in few groups; use another --folds or --seed"
            )
