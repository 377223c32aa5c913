"""Grad-CAM (Selvaraju et al. 2017) on the last feature maps, as an overlay on the image."""

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainer.model.efficientnet import Classifier
from trainer.model.folded_backbone import FoldedBackbone

STRENGTH = 0.6  # opacity of the overlay where the heatmap is 1
QUALITY = 88  # of JPEG: no visible blocks in X-rays, and a report with 36 pairs stays below 1 MB

Pixels = NDArray[np.uint8]
Heat = NDArray[np.float32]


def folded_backbone(model: Classifier) -> FoldedBackbone:
    """Return the backbone that computes feature maps for heatmaps, on the device of the model."""
    return FoldedBackbone(model.backbone, "fp32", next(model.parameters()).device)


def heatmaps_of(model: Classifier, maps: Tensor, explained: Tensor, *, side: int) -> list[Heat]:
    """Return the Grad-CAM heatmaps of feature maps (B, 1280, ...) for the classes (B,) int64.

    The model is in eval mode. Each heatmap is (side, side) float32, from 0 to 1.
    """
    maps = maps.detach().requires_grad_()
    logits = model.head(maps.mean((2, 3)).float())  # (B, classes)
    gradients = torch.autograd.grad(logits.gather(1, explained[:, None]).sum(), maps)[0]
    raw = (gradients.mean((2, 3), keepdim=True) * maps.detach()).sum(1).relu()  # (B, S/32, S/32)
    peaks = raw.amax((1, 2), keepdim=True)
    scaled = torch.where(peaks > 0, raw / peaks.clamp_min(torch.finfo(raw.dtype).tiny), raw)
    large = torch.nn.functional.interpolate(scaled[:, None].float(), size=(side, side), mode="bicubic")
    return list(large[:, 0].clamp(0, 1).cpu().numpy())


def overlay(image: Pixels, heatmap: Heat) -> bytes:
    """Return the image (C, S, S) overlaid with a heatmap (S, S) in colour, as JPEG."""
    from matplotlib import colormaps  # noqa: PLC0415 -- takes a second, and many reports show no heatmap

    colours = colormaps["inferno"](heatmap)[..., :3] * 255  # (S, S, 3)
    opacity = STRENGTH * heatmap[..., None]
    gray = np.broadcast_to(image.transpose(1, 2, 0), colours.shape)
    return jpeg((gray * (1 - opacity) + colours * opacity).round().astype(np.uint8).transpose(2, 0, 1))


def jpeg(image: Pixels) -> bytes:
    """Return an image (1 or 3, S, S) as JPEG."""
    flat = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(flat)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
