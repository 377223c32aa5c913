"""Where a model looked: Grad-CAM (Selvaraju et al. 2017) on the last feature maps, drawn over the image."""

import io

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainer.data.transforms import normalised
from trainer.model.efficientnet import Classifier
from trainer.model.head import HeadConfig

STRENGTH = 0.6  # opacity of the overlay where the evidence is strongest
QUALITY = 88  # of JPEG: films show no blocks at it, and a page of 36 pairs stays below a megabyte

Pixels = NDArray[np.uint8]
Heat = NDArray[np.float32]


def evidence(model: Classifier, images: Tensor, called: Tensor, config: HeadConfig) -> list[Heat]:
    """Return for each image where the evidence for its class lies, each (S, S) float32 from 0 to 1.

    `images` are (B, 1 or 3, S, S) uint8 on the device of `model`, which is in eval mode; `called` (B,) int64 is the
    class of each image to explain.
    """
    with torch.no_grad():
        maps = model.backbone.network.extract_features(normalised(images, config))  # (B, 1280, S/32, S/32)
    maps.requires_grad_()
    logits = model.head(maps.mean((2, 3)).float())  # (B, classes)
    slopes = torch.autograd.grad(logits.gather(1, called[:, None]).sum(), maps)[0]
    raw = (slopes.mean((2, 3), keepdim=True) * maps.detach()).sum(1).relu()  # (B, S/32, S/32)
    peaks = raw.amax((1, 2), keepdim=True)
    scaled = torch.where(peaks > 0, raw / peaks.clamp_min(torch.finfo(raw.dtype).tiny), raw)
    large = torch.nn.functional.interpolate(scaled[:, None].float(), size=images.shape[-2:], mode="bicubic")
    return list(large[:, 0].clamp(0, 1).cpu().numpy())


def overlay(image: Pixels, heat: Heat) -> bytes:
    """Return the image (C, S, S) with its evidence (S, S) in colour, as a JPEG."""
    colours = colormaps["inferno"](heat)[..., :3] * 255  # (S, S, 3)
    opacity = STRENGTH * heat[..., None]
    gray = np.broadcast_to(image.transpose(1, 2, 0), colours.shape)
    return jpeg((gray * (1 - opacity) + colours * opacity).round().astype(np.uint8).transpose(2, 0, 1))


def jpeg(image: Pixels) -> bytes:
    """Return an image (1 or 3, S, S) as a JPEG."""
    flat = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(flat)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
