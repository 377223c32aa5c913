"""Describes images by what a classifier could use instead of their subject: size, file format, rim, small patches."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_shards.index import ShardIndex
from data_shards.pack.near_duplicates import perceptual_hash
from data_shards.process_pool import map_in_processes, process_count
from data_shards.read.shard_cache import default_cache
from data_shards.read.shard_files import ShardFiles
from data_shards.samples import Extent, StoredSample, read_square
from data_shards.tar_index import key_of
from trainer.evaluation.predictions import sample_ids

Features = NDArray[np.float32]
Gray = NDArray[np.uint8]

CHUNK = 64  # images per task of a process
THUMBNAIL, FINE = 16, 64  # sides of the reduced images
RIM = 8  # the rim is 1/8 of the side
BINS = 32  # of the brightness histogram of a channel
GRIDS = (8, 16, 32)  # a patch is 1/8, 1/16 or 1/32 of the side
CELL_GRIDS = (16, 32, 64)  # a cell, in which a mark is looked for, is 1/16, 1/32 or 1/64 of the side
SMALLEST_PATCH = 2  # pixels
QUANTIZATION_TABLES = 2  # luminance and chrominance


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The described images of a data set.

    Attributes:
        labels: (N,) int64, the classes.
        groups: Patient or case of each image, "" where unknown.
        keys: Split and key of each image, such as "train 000012".
        samples: (N, 16) uint8, identity of each image: see `sample_ids`.
        hashes: Perceptual hash of each image in hexadecimal, "" for an image without structure.
        features: (N, F) float32 of each check, by the check's name.
        total: Images in the data set; more than N if only a sample was read.
    """

    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    keys: tuple[str, ...]
    samples: NDArray[np.uint8]
    hashes: tuple[str, ...]
    features: dict[str, Features]
    total: int


@dataclass(frozen=True)
class _Described:
    label: int
    group: str
    digest: str
    features: dict[str, Features]


def describe(
    location: str,
    index: ShardIndex,
    *,
    size: int,
    limit: int,
    processes: int | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> ImageSet:
    """Return the descriptions of the images of all splits, or of a random sample of `limit` images.

    Args:
        location: Folder or URL of the data set.
        index: Index of the data set, which has one label per image.
        size: Side of the square that the network sees, in pixels.
        limit: Maximum number of images to read.
        processes: Number of decoding processes; None starts one per core.
        on_progress: Called with the number of images read, and of all to read.

    Raises:
        DamagedShard, RemoteError: A shard or sample is not what the index says, or cannot be fetched.
    """
    extents = [(split, extent) for split in index.splits for extent in _extents(location, index, split)]
    samples = np.concatenate([sample_ids(index, split) for split in index.splits])
    total = len(extents)
    if total > limit:
        drawn = np.sort(np.random.default_rng(0).choice(total, limit, replace=False))
        extents, samples = [extents[place] for place in drawn], samples[drawn]
    parts = [extents[start : start + CHUNK] for start in range(0, len(extents), CHUNK)]
    tasks = [([extent for _, extent in part], index, size) for part in parts]
    done, found = 0, dict[int, list[_Described]]()
    processes = processes or process_count(len(extents), per_process=CHUNK)
    for number, described in map_in_processes(_describe_all, tasks, processes=processes):
        found[number] = described
        done += len(described)
        on_progress(done, len(extents))
    images = [image for number in sorted(found) for image in found[number]]
    return ImageSet(
        labels=np.array([image.label for image in images], dtype=np.int64),
        groups=tuple(image.group for image in images),
        keys=tuple(f"{split} {key_of(extent.sample_id + extent.shift)}" for split, extent in extents),
        samples=samples,
        hashes=tuple(image.digest for image in images),
        features={name: np.stack([image.features[name] for image in images]) for name in images[0].features},
        total=total,
    )


def _extents(location: str, index: ShardIndex, split: str) -> Iterator[Extent]:
    files = ShardFiles(location, index, default_cache())
    for shard in index.of_split(split):
        table = files.table_of(shard)
        for place, edges in enumerate(table.extents.tolist()):
            yield Extent(shard.name, table.path, table.first + place, tuple(edges))


def _describe_all(extents: Sequence[Extent], index: ShardIndex, size: int) -> list[_Described]:
    return [_describe(*read_square(extent, index=index, size=size)) for extent in extents]


def _describe(sample: StoredSample, pixels: NDArray[np.uint8]) -> _Described:
    gray = Image.fromarray(pixels[0]) if len(pixels) == 1 else Image.fromarray(pixels.transpose(1, 2, 0)).convert("L")
    square = np.asarray(gray)
    fine = _reduced(gray, min(FINE, gray.width))
    thumbnail = _reduced(gray, THUMBNAIL)
    width, height = int(sample.info["width"]), int(sample.info["height"])
    features = {
        "image size": [width, height, width / height, np.log(width * height)],
        "file format": _file_format(sample.image),
        "file size": [np.log(len(sample.image)), len(sample.image) / (width * height)],
        "brightness histogram": np.concatenate([np.bincount(band.ravel() // 8, minlength=BINS) for band in pixels]),
        "outer rim": fine[outside(len(fine), len(fine) // RIM)],
        "constant mark near the edge": edge_cells(square),
        "one patch near the edge": edge_patches(square),
        "everything but the center": thumbnail[outside(THUMBNAIL, THUMBNAIL // 4)],
        "8 x 8 thumbnail": _reduced(gray, THUMBNAIL // 2).ravel(),
    }
    if not isinstance(sample.label, int):
        raise TypeError("an image with several labels has no class")  # `audit` refuses such a data set
    return _Described(
        label=sample.label,
        group=str(sample.info.get("group", "")),
        digest=perceptual_hash(gray),
        features={name: np.asarray(values, dtype=np.float32) for name, values in features.items()},
    )


def edge_patches(square: Gray) -> Features:
    """Return mean, greatest and least pixel of each small patch in the outer half of a gray square (S, S), (F,).

    Patches of three sizes overlap by half, so that a marker lies within one of them wherever it is.
    """
    side, values = len(square), []
    for grid in GRIDS:
        edge = side // grid
        if edge < SMALLEST_PATCH:
            continue
        for start in (0, edge // 2):
            count = (side - start) // edge
            stop = start + count * edge
            patches = square[start:stop, start:stop].reshape(count, edge, count, edge)
            is_outer = _in_outer_half(count, edge, start, side)
            values += [
                patches.mean(axis=(1, 3))[is_outer], patches.max(axis=(1, 3))[is_outer],
                patches.min(axis=(1, 3))[is_outer],
            ]  # fmt: skip
    return np.concatenate(values).astype(np.float32)


def edge_cells(square: Gray) -> Features:
    """Return the mean pixel of each cell in the outer half of a gray square (S, S), rounded, (F,).

    The cells are so small that a mark of a few pixels covers one of them entirely.
    """
    side, values = len(square), []
    for edge in sorted({max(SMALLEST_PATCH, side // grid) for grid in CELL_GRIDS}):
        count = side // edge
        cells = square[: count * edge, : count * edge].reshape(count, edge, count, edge)
        values.append(cells.mean(axis=(1, 3))[_in_outer_half(count, edge, 0, side)])
    return np.concatenate(values).round().astype(np.float32)


def outside(side: int, margin: int) -> NDArray[np.bool_]:
    """Return which pixels of a square, (side, side), are less than `margin` from an edge."""
    mask = np.ones((side, side), dtype=bool)
    mask[margin:-margin, margin:-margin] = False
    return mask


def _in_outer_half(count: int, edge: int, start: int, side: int) -> NDArray[np.bool_]:
    """Return which cells of a grid, (count, count), have their center less than a quarter of the side from an edge."""
    centers = start + edge * (np.arange(count) + 0.5)
    outer = (centers < side / 4) | (centers > 3 * side / 4)
    return np.asarray(outer[:, None] | outer[None])


def _reduced(image: Image.Image, side: int) -> Gray:
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def _file_format(data: bytes) -> list[float]:
    """Return whether the stored file is a JPEG, and the mean of each of its quantization tables."""
    image = Image.open(io.BytesIO(data))
    tables = getattr(image, "quantization", None) or {}
    means = [float(np.mean(tables[number])) if number in tables else 0.0 for number in range(QUANTIZATION_TABLES)]
    return [float(image.format == "JPEG"), float(len(image.getbands())), *means]
