"""Transforms of image batches on the device: normalisation and random augmentation."""

import torch
from torch import Tensor

from trainer.model.head import HeadConfig

# Mild enough for X-rays: side, brightness and framing vary between images, anatomy does not.
ROTATION_DEGREES = 7.0
SHIFT = 0.05
ZOOM = 0.1
CONTRAST = 0.2


class Augmentation:
    """Random flips, rotations, shifts, zooms and contrast changes, drawn per image from torch's global generator.

    `strength`, from 0 to 4, multiplies all of them but the flips.
    """

    def __init__(self, strength: float = 1.0) -> None:
        from torchvision.transforms import v2  # noqa: PLC0415 -- takes a second, and only augmentation needs it

        shift, zoom, contrast = SHIFT * strength, ZOOM * strength, CONTRAST * strength
        self.draw = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomAffine(ROTATION_DEGREES * strength, translate=(shift, shift), scale=(1 - zoom, 1 + zoom)),
                v2.ColorJitter(brightness=contrast, contrast=contrast),
            ]
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return `(B, C, S, S) uint8` images, each augmented independently."""
        return torch.stack([self.draw(image) for image in images])


def normalised(images: Tensor, config: HeadConfig) -> Tensor:
    """Return `(B, 1 or 3, S, S) uint8` images as `(B, 3, S, S) float32`, channels last in memory."""
    mean = torch.tensor(config.mean, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(config.std, device=images.device).view(1, 3, 1, 1) * 255
    scaled = (images.float() - mean) / std  # gray (B, 1, S, S) broadcasts to (B, 3, S, S)
    return scaled.contiguous(memory_format=torch.channels_last)
