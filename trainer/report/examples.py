"""Examples of a report: misclassified images, the most confident errors first, and correct ones, with Grad-CAM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.transforms import normalised
from trainer.model.efficientnet import Classifier
from trainer.model.head import HeadConfig
from trainer.report.gradcam import Heat, folded_backbone, heatmaps_of, jpeg, overlay

AT_ONCE = 16  # images whose feature maps are in memory: two micro-batches of the backbone
SHOWN = 12  # images of each kind of error
CORRECT_SHOWN = 6

ExampleKind = Literal["false_negative", "false_positive", "other", "correct"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ExampleImage:
    """One image and its prediction.

    Attributes:
        id: Index of the image in its split.
        kind: False negative or false positive of the positive class; "other" for errors between other classes.
        label: Index of the true class.
        predicted: Index of the predicted class.
        probabilities: Of each class, after temperature scaling.
        source: Name of the source file.
        image: JPEG; None before `with_pictures`.
        heatmap: JPEG of the image with the Grad-CAM heatmap of the predicted class; None before `with_pictures`.
        evidence: The same of the true class where that is another one: what speaks for the class that was missed.
    """

    id: int
    kind: ExampleKind
    label: int
    predicted: int
    probabilities: tuple[float, ...]
    source: str = ""
    image: bytes | None = None
    heatmap: bytes | None = None
    evidence: bytes | None = None


def worst_misclassified(
    ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    *,
    positive: int | None,
    limit: int = SHOWN,
) -> tuple[ExampleImage, ...]:
    """Return up to `limit` misclassified images of each kind, the most confident errors first.

    `positive` is the index of the class that kinds are about; None makes all errors of the kind "other".
    """
    confidence = probabilities[np.arange(len(predicted)), predicted]
    is_error = labels != predicted
    kinds: dict[ExampleKind, tuple[NDArray[np.bool_], NDArray[np.float64]]] = {"other": (is_error, confidence)}
    if positive is not None:
        missed, raised = is_error & (labels == positive), is_error & (predicted == positive)
        kinds = {
            "false_negative": (missed, -probabilities[:, positive]),
            "false_positive": (raised, confidence),
            "other": (is_error & ~missed & ~raised, confidence),
        }
    return tuple(
        _example(kind, int(row), ids, labels, probabilities, predicted=int(predicted[row]))
        for kind, (mask, badness) in kinds.items()
        for row in _worst_rows(mask, badness, limit)
    )


def random_correct(
    ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    *,
    seed: int = 0,
    limit: int = CORRECT_SHOWN,
) -> tuple[ExampleImage, ...]:
    """Return up to `limit` correctly classified images, drawn at random and evenly from the classes."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(labels == predicted))
    place = {int(row): int((labels[rows[:at]] == labels[row]).sum()) for at, row in enumerate(rows[: 100 * limit])}
    chosen = sorted(place, key=lambda row: place[row])[:limit]  # the first of each class, then the second, ...
    return tuple(
        _example("correct", row, ids, labels, probabilities, predicted=int(labels[row]))
        for row in sorted(chosen, key=lambda row: (labels[row], row))
    )


def with_pictures(
    examples: tuple[ExampleImage, ...],
    images: Mapping[int, tuple[str, Pixels]],
    model: Classifier,
    config: HeadConfig,
) -> tuple[ExampleImage, ...]:
    """Add pixels and Grad-CAM overlays; `images` maps an id to source file and (C, S, S) uint8 pixels."""
    ids, folded = sorted({example.id for example in examples}), folded_backbone(model)
    heatmaps = dict[tuple[int, int], Heat]()
    for start in range(0, len(ids), AT_ONCE):
        pixels = {id_: images[id_][1] for id_ in ids[start : start + AT_ONCE]}
        shown = [example for example in examples if example.id in pixels]
        maps = folded.feature_maps(
            torch.from_numpy(np.stack(list(pixels.values()))), partial(normalised, config=config)
        )
        heatmaps |= _heatmaps(shown, list(pixels), maps, model, side=config.image_size)
    return tuple(_with_pixels(example, *images[example.id], heatmaps) for example in examples)


def _heatmaps(
    examples: Sequence[ExampleImage], ids: Sequence[int], maps: Tensor, model: Classifier, *, side: int
) -> dict[tuple[int, int], Heat]:
    """Return the heatmaps of examples by image and class, from the feature maps of the images with these ids."""
    pairs = list(dict.fromkeys((example.id, c) for example in examples for c in (example.predicted, example.label)))
    places = {id_: place for place, id_ in enumerate(ids)}
    rows = torch.tensor([places[id_] for id_, _ in pairs], device=maps.device)
    explained = torch.tensor([c for _, c in pairs], device=maps.device)
    return dict(zip(pairs, heatmaps_of(model, maps[rows], explained, side=side), strict=True))


def _example(
    kind: ExampleKind,
    row: int,
    ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    *,
    predicted: int,
) -> ExampleImage:
    return ExampleImage(
        id=int(ids[row]),
        kind=kind,
        label=int(labels[row]),
        predicted=predicted,
        probabilities=tuple(probabilities[row].tolist()),
    )


def _with_pixels(
    example: ExampleImage, source: str, image: Pixels, heatmaps: Mapping[tuple[int, int], Heat]
) -> ExampleImage:
    explained = list(dict.fromkeys([example.predicted, example.label]))
    overlays = [overlay(image, heatmaps[example.id, c]) for c in explained]
    return replace(
        example,
        source=source,
        image=jpeg(image),
        heatmap=overlays[0],
        evidence=overlays[1] if len(overlays) > 1 else None,
    )


def _worst_rows(mask: NDArray[np.bool_], badness: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    rows = np.flatnonzero(mask)
    return rows[np.argsort(-badness[rows], kind="stable")][:limit]
