"""Augmentation of a batch at once equals torchvision's transforms, image by image."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from trainer.data import transforms
from trainer.data.transforms import Augmentation

SIDE = 64
ANGLES, ZOOMS = [0.8, -0.5, 0.0, 1.0], [0.5, -1.0, 0.3, 0.0]
SHIFTS = [[0.6, -0.4], [0.0, 1.0], [-1.0, 0.2], [0.0, 0.0]]
BRIGHTNESS, CONTRAST = [0.5, -0.5, 0.0, 1.0], [-1.0, 0.3, 0.9, 0.0]


@pytest.mark.parametrize("flips", [0.0, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_augmented_as_torchvision_augments_each_image(monkeypatch, channels, flips):
    images = smooth_images(channels)
    drawn = iter([ANGLES, ZOOMS, [shift for pair in SHIFTS for shift in pair], BRIGHTNESS + CONTRAST])
    monkeypatch.setattr(Augmentation, "_draw", lambda *_: torch.tensor(next(drawn)))
    monkeypatch.setattr(transforms, "FLIPS", flips)

    found = Augmentation()(images)

    for number, image in enumerate(images):
        flipped = reference.horizontal_flip(image) if flips else image
        assert (found[number].float() - augmented_by_torchvision(flipped, number)).abs().max() <= 0.51  # rounding


def smooth_images(channels: int) -> Tensor:
    noise = torch.rand(4, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 255
    return (reference.gaussian_blur(noise, [9, 9]) * 4 - 400).clamp(0, 255).round().to(torch.uint8)


def augmented_by_torchvision(image: Tensor, number: int) -> Tensor:
    moved = reference.affine(
        image.float(),
        angle=transforms.ROTATION_DEGREES * ANGLES[number],
        translate=[transforms.SHIFT * SIDE * shift for shift in SHIFTS[number]],
        scale=1 + transforms.ZOOM * ZOOMS[number],
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    bright = reference.adjust_brightness(moved / 255, 1 + transforms.CONTRAST * BRIGHTNESS[number])
    return reference.adjust_contrast(bright, 1 + transforms.CONTRAST * CONTRAST[number]) * 255
