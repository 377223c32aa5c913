"""Measures how well a model classifies with the rim or the center of the images blanked, and where its Grad-CAM lies.

The rim is the outer eighth of the square on each side, as in the audit's check of that name. What is blanked gets the
value that the network's normalisation maps to zero, the same in all images, so that nothing of it is left.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t
from torch import Tensor

from data_shards.counted import counted
from data_shards.read.stream import Batch
from trainer.audit.describe import RIM, outside
from trainer.data.transforms import normalised
from trainer.evaluation.bootstrap import Floats, Labels, ranked_classes
from trainer.evaluation.intervals import FEWEST_GROUPS, TAIL, Interval, auroc_influence, auroc_interval
from trainer.evaluation.metric_text import figure_text, interval_text
from trainer.evaluation.temperature import apply_temperature
from trainer.model.efficientnet import Classifier
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig
from trainer.model.precision import is_supported
from trainer.report.gradcam import heatmaps_of

CPU = torch.device("cpu")
NO_SPREAD = 1e-9  # standard error below which shares differ by rounding alone
AT_ONCE = 32  # images in the network
PROBED, FEWEST_PROBED = 200, 40  # images of 224 x 224 pixels, each three times through the network; fewer large ones
PROBED_SIDE = 224  # pixels
WHOLE, RIM_ONLY, WITHOUT_RIM = "whole image", "outer rim alone", "without the outer rim"


@dataclass(frozen=True, kw_only=True)
class RegionFigure:
    """The model's AUROC on images of which only a region is left; None where it is undefined."""

    name: str
    auroc: float | None
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class ModelRegions:
    """What a model does with the regions of the images.

    Attributes:
        figures: AUROC on the whole image, the rim alone, and without the rim.
        images: Images that were looked at.
        total: Images of the split.
        rim_area: Share of the rim in the area of an image.
        heat_in_rim: Mean share of the Grad-CAM heatmap of the predicted class that lies in the rim; None without heat.
        heat_interval: Its 95 % confidence interval, or None.
        without_heat: Images whose heatmap is empty: they do not count.
        cells: Side of the feature maps from which a heatmap is enlarged.
    """

    figures: tuple[RegionFigure, ...]
    images: int
    total: int
    rim_area: float
    heat_in_rim: float | None
    heat_interval: Interval | None
    without_heat: int
    cells: int


def probed_count(image_size: int) -> int:
    """Return how many images a report looks at: fewer large ones, because nobody waits minutes for a report."""
    return max(FEWEST_PROBED, min(PROBED, PROBED * PROBED_SIDE**2 // image_size**2))


def chosen_images(labels: Labels, limit: int) -> Labels:
    """Return the rows of at most `limit` images, all or a random sample with equally many of each class, sorted."""
    if len(labels) <= limit:
        return np.arange(len(labels))
    rows = np.random.default_rng(0).permutation(len(labels))
    place = np.empty(len(labels), dtype=np.int64)  # of each image among those of its class
    for label in np.unique(labels):
        of_class = rows[labels[rows] == label]
        place[of_class] = np.arange(len(of_class))
    return np.sort(rows[np.argsort(place[rows], kind="stable")][:limit])


@dataclass(frozen=True)
class _Outputs:
    """Probabilities (N, C) of each region by its name, share of the heat in the rim (N,), side of the feature maps."""

    probabilities: dict[str, Floats]
    shares: Floats
    cells: int


def measure_regions(
    model: Classifier,
    config: HeadConfig,
    batches: Iterable[Batch],
    labels: Labels,
    units: Labels,
    *,
    positive: int,
    temperature: float,
    total: int,
) -> ModelRegions:
    """Return what a model in eval mode does with the regions of the images of `batches`.

    `labels` (N,) and `units` (N,), the index of each image's group, are in the order of the batches. `total` is the
    number of images of the split.
    """
    found, is_rim = _outputs(model, config, batches), rim(config.image_size)
    units = np.unique(units, return_inverse=True)[1]
    has_heat = ~np.isnan(found.shares)
    shares = found.shares[has_heat]
    return ModelRegions(
        figures=tuple(
            _figure(name, apply_temperature(one, temperature), labels, units, positive=positive)
            for name, one in found.probabilities.items()
        ),
        images=len(labels),
        total=total,
        rim_area=float(is_rim.mean()),
        heat_in_rim=float(shares.mean()) if len(shares) else None,
        heat_interval=mean_interval(shares, units[has_heat]),
        without_heat=int((~has_heat).sum()),
        cells=found.cells,
    )


def rim(side: int) -> NDArray[np.bool_]:
    """Return which pixels of a square are in its rim, (side, side)."""
    return outside(side, side // RIM)


def heat_share(heatmap: NDArray[np.float32], region: NDArray[np.bool_]) -> float:
    """Return the share of a heatmap (S, S) that lies in a region (S, S), NaN if it is zero everywhere."""
    heat = float(heatmap.sum())
    return float(heatmap[region].sum()) / heat if heat > 0 else float("nan")


def mean_interval(values: Floats, units: Labels) -> Interval | None:
    """Return the t interval of the mean of shares (N,), robust to their groups (N,); None if they do not vary."""
    groups, rows = np.unique(units, return_inverse=True)
    if len(groups) < FEWEST_GROUPS:
        return None
    sums = np.bincount(rows, weights=values - values.mean())
    error = float(np.sqrt(len(groups) / (len(groups) - 1) * np.square(sums).sum())) / len(values)
    reach = float(t.ppf(1 - TAIL, len(groups) - 1)) * error
    mean = float(values.mean())
    return (max(0.0, mean - reach), min(1.0, mean + reach)) if error > NO_SPREAD else None


def region_lines(found: ModelRegions) -> list[str]:
    """Return what was found, and what it cannot show, in plain sentences."""
    if len(known := {one.name: one for one in found.figures if one.auroc is not None}) < len(found.figures):
        blanked = []
    else:
        blanked = [
            f"With the center blanked, so that the outer rim alone is left, the model reaches an AUROC of "
            f"{_auroc_text(known[RIM_ONLY])}; with the rim blanked {_auroc_text(known[WITHOUT_RIM])}; on the same "
            f"whole images {_auroc_text(known[WHOLE])}."
        ]
    caution = (
        f"This proves nothing about what the model looks at: it was not trained on blanked images, and a heatmap has "
        f"only {found.cells} x {found.cells} cells."
    )
    return [*blanked, *_heat_lines(found), caution]


def _heat_lines(found: ModelRegions) -> list[str]:
    if found.heat_in_rim is None:
        return ["The Grad-CAM heatmaps of the predicted classes are empty."]
    area, interval = f"{found.rim_area:.0%}".replace("%", " %"), ""
    than = "about as much as" if abs(found.heat_in_rim - found.rim_area) < 0.005 else None  # noqa: PLR2004 -- as shown
    if found.heat_interval is not None:
        low, high = found.heat_interval
        interval = f" (95 % CI {100 * low:.0f} to {100 * high:.0f} %)"
        than = (
            "more than"
            if low > found.rim_area
            else "less than"
            if high < found.rim_area
            else "not clearly different from"
        )
    than = than or ("more than" if found.heat_in_rim > found.rim_area else "less than")
    empty = f" Left out: {counted(found.without_heat, 'image')} without any heat." if found.without_heat else ""
    return [
        f"{100 * found.heat_in_rim:.0f} % of the Grad-CAM heatmap of the predicted class lies in the rim{interval}, "
        f"{than} the {area} that the area of the rim alone would give.{empty}"
    ]


def _auroc_text(figure: RegionFigure) -> str:
    assert figure.auroc is not None  # noqa: S101 -- only defined ones are said
    return figure_text(figure.auroc, 3) + interval_text(figure.interval, 3)


def _outputs(model: Classifier, config: HeadConfig, batches: Iterable[Batch]) -> _Outputs:
    precision = config.precision if is_supported(config.precision, CPU) else "fp32"
    backbone = FoldedBackbone(model.backbone, precision, CPU)
    is_rim = rim(config.image_size)
    in_rim = torch.from_numpy(is_rim)
    parts: dict[str, list[Floats]] = {WHOLE: [], RIM_ONLY: [], WITHOUT_RIM: []}
    shares, cells = [], 0
    for images in _stacked(batches):
        maps = backbone.feature_maps(images, partial(normalised, config=config)).float()
        cells = int(maps.shape[-1])
        parts[WHOLE].append(_probabilities(model, maps.mean((2, 3))))
        predicted = torch.from_numpy(parts[WHOLE][-1].argmax(axis=1))
        heatmaps = heatmaps_of(model, maps, predicted, side=config.image_size)
        shares += [heat_share(heatmap, is_rim) for heatmap in heatmaps]
        for name, kept in ((RIM_ONLY, in_rim), (WITHOUT_RIM, ~in_rim)):
            features = backbone(images, partial(_blanked, config=config, kept=kept))
            parts[name].append(_probabilities(model, features))
    return _Outputs({name: np.concatenate(found) for name, found in parts.items()}, np.array(shares), cells)


def _stacked(batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Yield the images of `batches` in fuller ones, so that all cores compute."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch.images)
        if sum(map(len, waiting)) >= AT_ONCE:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _blanked(images: Tensor, config: HeadConfig, kept: Tensor) -> Tensor:
    """Return normalised images (B, 3, S, S) that are zero but for the pixels `kept` (S, S)."""
    return normalised(images, config) * kept


@torch.no_grad()
def _probabilities(model: Classifier, features: Tensor) -> Floats:
    return np.asarray(torch.softmax(model.head(features).double(), dim=1).numpy())


def _figure(name: str, probabilities: Floats, labels: Labels, units: Labels, *, positive: int) -> RegionFigure:
    ranked: Sequence[int] = [
        c for c in ranked_classes(probabilities.shape[1], positive) if 0 < (labels == c).sum() < len(labels)
    ]
    scored = [(probabilities[:, c], labels == c) for c in ranked]
    area = auroc_influence(scored, units)[0] if scored else None
    return RegionFigure(name=name, auroc=area, interval=auroc_interval(scored, units))
