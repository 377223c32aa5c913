"""Images that a model called wrongly, the worst first, with where it looked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.model.efficientnet import Classifier
from trainer.model.head import HeadConfig
from trainer.report.gradcam import evidence, jpeg, overlay

SHOWN = 12  # of each sort: a person looks at a dozen, not at a hundred

Sort = Literal["missed", "alarm", "confused"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class MisclassifiedImage:
    """One image and what was said of it.

    Attributes:
        id: Number of the image in its split.
        sort: "missed": the positive class was not called; "alarm": it was called wrongly; "confused": the rest.
        true: Position of its class; `called` of the one it was called.
        probabilities: Of each class, as decided on.
        source: Name of the file that it came from, by which a person finds it again.
        image: JPEG; `heat` the same with the evidence for the called class; None until looked at.
    """

    id: int
    sort: Sort
    true: int
    called: int
    probabilities: tuple[float, ...]
    source: str = ""
    image: bytes | None = None
    heat: bytes | None = None


def worst_misclassified(
    ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    called: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    *,
    positive: int,
    limit: int = SHOWN,
) -> tuple[MisclassifiedImage, ...]:
    """Return up to `limit` mistakes of each sort: missed before alarms before the rest, the surest error first."""
    sure = probabilities[np.arange(len(called)), called]
    sorts: dict[Sort, tuple[NDArray[np.bool_], NDArray[np.float64]]] = {
        "missed": ((labels == positive) & (called != positive), -probabilities[:, positive]),
        "alarm": ((labels != positive) & (called == positive), sure),
        "confused": ((labels != positive) & (called != positive) & (labels != called), sure),
    }
    return tuple(
        MisclassifiedImage(
            id=int(ids[row]),
            sort=sort,
            true=int(labels[row]),
            called=int(called[row]),
            probabilities=tuple(probabilities[row].tolist()),
        )
        for sort, (among, badness) in sorts.items()
        for row in _first(among, badness, limit)
    )


def with_pictures(
    misclassified: tuple[MisclassifiedImage, ...],
    images: Mapping[int, tuple[str, Pixels]],
    model: Classifier,
    config: HeadConfig,
) -> tuple[MisclassifiedImage, ...]:
    """Return the mistakes with their picture and overlay; `images` holds source and (C, S, S) uint8 pixels by id."""
    return tuple(_with_picture(mistake, *images[mistake.id], model, config) for mistake in misclassified)


def _with_picture(
    mistake: MisclassifiedImage, source: str, image: Pixels, model: Classifier, config: HeadConfig
) -> MisclassifiedImage:
    device = next(model.parameters()).device
    batch = torch.from_numpy(image)[None].to(device)
    heat = evidence(model, batch, torch.tensor([mistake.called], device=device), config)[0]
    return replace(mistake, source=source, image=jpeg(image), heat=overlay(image, heat))


def _first(among: NDArray[np.bool_], badness: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    rows = np.flatnonzero(among)
    return rows[np.argsort(-badness[rows], kind="stable")][:limit]
