"""Image loading with other libraries: WebDataset with its own decoder, and torchvision's ImageFolder.

Both in their fastest standard form: Pillow resizes before the pixels become a tensor, and the workers make the batches.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import webdataset
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transform(image_size: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.Resize(image_size),
            v2.CenterCrop(image_size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def webdataset_batches(shards: list[str], *, image_size: int, batch_size: int, workers: int) -> Iterable:
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
    batches = samples.map_tuple(transform(image_size)).batched(batch_size)
    return DataLoader(batches, batch_size=None, num_workers=workers)


def image_folder_batches(folder: Path, *, image_size: int, batch_size: int, workers: int) -> Iterable:
    images = ImageFolder(folder, transform(image_size))
    return DataLoader(images, batch_size=batch_size, shuffle=True, num_workers=workers)
