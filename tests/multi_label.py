"""Multi-label data sets for tests: images whose labels depend on their pixels, some of them unknown."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.index import ShardIndex
from data_shards.pack.options import EncodeOptions, LabelOptions, PackOptions
from data_shards.pack.packing import pack
from data_shards.pack.sources import ImageFolder, SourceImage
from data_shards.targets import UNKNOWN

LABELS = ("Cardiomegaly", "Effusion", "Nodule")
SIZE = 32  # pixels
SPOTS = ((4, 4), (4, 18), (18, 8))  # upper left corner of what shows each label
SPOT = 10  # pixels
SHARES = (0.5, 0.35, 0.25)  # of the images that have each label
UNKNOWN_SHARE = 0.15


def multi_label_folder(folder: Path, counts: dict[str | None, int], *, seed: int = 0) -> ImageFolder:
    """Write images to each split (None: to no split) and return them with their targets.

    An image with a label is bright at the label's place, with some noise.
    """
    random = np.random.default_rng(seed)
    images = []
    for split, count in counts.items():
        (folder / str(split)).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            has = random.random(len(LABELS)) < SHARES
            path = folder / str(split) / f"film-{number:04d}.png"
            Image.fromarray(_pixels(has, random)).save(path)
            known = random.random(len(LABELS)) >= UNKNOWN_SHARE
            targets = tuple(int(h) if k else -1 for h, k in zip(has, known, strict=True))
            images.append(SourceImage(name=f"{split}/{path.name}", path=path, split=split, targets=targets))
    return ImageFolder(images=tuple(images), label_names=LABELS)


def write_table(file: Path, found: ImageFolder) -> Path:
    """Write the images' splits and targets as a table: 1, 0, and an empty cell where a label is unknown."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["Image Index", "Patient ID", "split", *found.label_names])
        for number, image in enumerate(found.images):
            assert image.targets is not None
            cells = ["" if value == UNKNOWN else value for value in image.targets]
            writer.writerow([image.name, number, image.split, *cells])
    return file


def _pixels(has: np.ndarray, random: np.random.Generator) -> np.ndarray:
    pixels = random.integers(0, 90, (SIZE, SIZE))
    for present, (row, column) in zip(has, SPOTS, strict=True):
        if present:
            pixels[row : row + SPOT, column : column + SPOT] += random.integers(90, 160)
    return pixels.astype(np.uint8)


def pack_multi_label(
    folder: Path,
    counts: dict[str | None, int],
    *,
    change: Callable[[ImageFolder], ImageFolder] = lambda found: found,
    **options: object,
) -> tuple[Path, ShardIndex]:
    """Pack such images with a table of their labels and return the folder of the shards and their index."""
    table = write_table(folder / "labels.csv", change(multi_label_folder(folder / "images", counts)))
    labels = LabelOptions(
        tables=(str(table),),
        label_columns=LABELS,
        split_column="none" if "split" in options else "split",
        group_column="none",
    )
    chosen = PackOptions(
        **{
            "labels": labels,
            "multi_label": True,
            "processes": 1,
            "allow_leakage": True,
            "plain_groups": True,
            "shard_bytes": 40_000,
            "encode": EncodeOptions(image_size=0),
            **options,
        }  # type: ignore[arg-type]
    )
    return folder / "shards", pack(folder / "images", folder / "shards", chosen).index
