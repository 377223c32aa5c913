"""Transforms of image batches on the device: normalisation and random augmentation."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from trainer.model.head import HeadConfig

# Mild enough for X-rays: side, brightness and framing vary between images, anatomy does not.
ROTATION_DEGREES = 7.0
SHIFT = 0.05
ZOOM = 0.1
CONTRAST = 0.2
LUMA = torch.tensor((0.2989, 0.587, 0.114)).view(1, 3, 1, 1)  # gray of RGB, as in torchvision
FLIPS = 0.5  # share of the images


class Augmentation:
    """Random flips, rotations, shifts, zooms and contrast changes, drawn per image from the device's generator.

    They are the transforms of torchvision's RandomHorizontalFlip, RandomAffine (bilinear) and ColorJitter (brightness,
    then contrast), computed for the whole batch at once.

    `strength`, from 0 to 4, multiplies all of them but the flips.
    """

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength

    def __call__(self, images: Tensor) -> Tensor:
        """Return `(B, C, S, S) uint8` images, each augmented independently."""
        moved = self._moved(images.float())
        return self._recolored(moved).round_().clamp_(0, 255).to(torch.uint8)

    def _moved(self, images: Tensor) -> Tensor:
        """Flip, rotate, shift and zoom about the center; what comes from outside of an image is black."""
        batch, device = len(images), images.device
        angle = math.radians(ROTATION_DEGREES) * self._draw(batch, device)
        zoom = 1 + ZOOM * self._draw(batch, device)
        shift = 2 * SHIFT * self._draw(2 * batch, device).view(batch, 2, 1)  # the side of an image is 2
        flip = torch.where(torch.rand(batch, device=device) < FLIPS, -1.0, 1.0)
        cosine, sine = angle.cos() / zoom, angle.sin() / zoom
        # From a place in the new image to its place in the old one: shift back, then rotate and zoom back, then flip.
        back = torch.stack([flip * cosine, flip * sine, -sine, cosine], 1).view(batch, 2, 2)
        grid = functional.affine_grid(torch.cat([back, -back @ shift], 2), list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)

    def _recolored(self, images: Tensor) -> Tensor:
        """Change the brightness, then the contrast: the distance of each pixel from the mean of its image."""
        factors = 1 + CONTRAST * self._draw(2 * len(images), images.device).view(2, -1, 1, 1, 1)
        bright = (images * factors[0]).clamp_(0, 255)
        gray = (
            bright
            if images.shape[1] == 1
            else (bright * LUMA.to(images.device, non_blocking=True)).sum(1, keepdim=True)
        )
        return torch.lerp(gray.mean((1, 2, 3), keepdim=True), bright, factors[1])

    def _draw(self, count: int, device: torch.device) -> Tensor:
        """Return random numbers from -strength to strength."""
        return self.strength * (2 * torch.rand(count, device=device) - 1)


def normalised(images: Tensor, config: HeadConfig) -> Tensor:
    """Return `(B, 1 or 3, S, S) uint8` images as `(B, 3, S, S) float32`, channels last in memory."""
    constants = 255 * torch.tensor((config.mean, config.std)).view(2, 1, 3, 1, 1)
    mean, std = constants.to(images.device, non_blocking=True).unbind()  # a GPU does not wait for them
    scaled = images.float().sub(mean).div(std)  # gray (B, 1, S, S) broadcasts to (B, 3, S, S)
    return scaled.contiguous(memory_format=torch.channels_last)
