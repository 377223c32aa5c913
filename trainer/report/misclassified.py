"""Misclassified images, the most confident errors first, with Grad-CAM overlays."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.model.efficientnet import Classifier
from trainer.model.head import HeadConfig
from trainer.report.gradcam import gradcam_heatmaps, jpeg, overlay

SHOWN = 12  # images of each kind of error

ErrorKind = Literal["false_negative", "false_positive", "other"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class MisclassifiedImage:
    """One misclassified image and its prediction.

    Attributes:
        id: Index of the image in its split.
        kind: False negative or false positive of the positive class; "other" for errors between other classes.
        label: Index of the true class.
        predicted: Index of the predicted class.
        probabilities: Of each class, after temperature scaling.
        source: Name of the source file.
        image: JPEG; None before `with_pictures`.
        heatmap: JPEG of the image with the Grad-CAM heatmap of the predicted class; None before `with_pictures`.
    """

    id: int
    kind: ErrorKind
    label: int
    predicted: int
    probabilities: tuple[float, ...]
    source: str = ""
    image: bytes | None = None
    heatmap: bytes | None = None


def worst_misclassified(
    ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    *,
    positive: int,
    limit: int = SHOWN,
) -> tuple[MisclassifiedImage, ...]:
    """Return up to `limit` misclassified images of each kind, the most confident errors first."""
    confidence = probabilities[np.arange(len(predicted)), predicted]
    kinds: dict[ErrorKind, tuple[NDArray[np.bool_], NDArray[np.float64]]] = {
        "false_negative": ((labels == positive) & (predicted != positive), -probabilities[:, positive]),
        "false_positive": ((labels != positive) & (predicted == positive), confidence),
        "other": ((labels != positive) & (predicted != positive) & (labels != predicted), confidence),
    }
    return tuple(
        MisclassifiedImage(
            id=int(ids[row]),
            kind=kind,
            label=int(labels[row]),
            predicted=int(predicted[row]),
            probabilities=tuple(probabilities[row].tolist()),
        )
        for kind, (mask, badness) in kinds.items()
        for row in _worst_rows(mask, badness, limit)
    )


def with_pictures(
    misclassified: tuple[MisclassifiedImage, ...],
    images: Mapping[int, tuple[str, Pixels]],
    model: Classifier,
    config: HeadConfig,
) -> tuple[MisclassifiedImage, ...]:
    """Add pixels and Grad-CAM overlay; `images` maps an id to source file and (C, S, S) uint8 pixels."""
    return tuple(_with_pixels(image, *images[image.id], model, config) for image in misclassified)


def _with_pixels(
    misclassified: MisclassifiedImage, source: str, image: Pixels, model: Classifier, config: HeadConfig
) -> MisclassifiedImage:
    device = next(model.parameters()).device
    batch = torch.from_numpy(image)[None].to(device)
    heatmap = gradcam_heatmaps(model, batch, torch.tensor([misclassified.predicted], device=device), config)[0]
    return replace(misclassified, source=source, image=jpeg(image), heatmap=overlay(image, heatmap))


def _worst_rows(mask: NDArray[np.bool_], badness: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    rows = np.flatnonzero(mask)
    return rows[np.argsort(-badness[rows], kind="stable")][:limit]
