"""Images as people give them: files, folders, shards. Read in order and in batches, however many there are."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cluster.errors import ClusterError
from cluster.files import read_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.errors import BadImage, ShardError
from data_shards.index import INDEX_NAME, read_index
from data_shards.locations import local_folder
from data_shards.pack.file_tree import files_below
from data_shards.pixels import FORMAT_NAMES, decode_square, is_image_file, read_image_file
from data_shards.plan import EpochPlan
from data_shards.read.stream import open_batches, read_samples
from trainer.errors import SpecError

PREFETCH_BATCHES = 2  # per loader worker


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Some images in order.

    Attributes:
        files: Name of each.
        errors: Why it could not be read, None where it could.
        pixels: (B, C, S, S) uint8 of those that could, in the same order.
    """

    files: tuple[str, ...]
    errors: tuple[str | None, ...]
    pixels: Tensor


@dataclass(frozen=True)
class ImageFiles:
    """Image files, by path."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, *, batch_size: int, image_size: int, loader_workers: int) -> Iterator[ImageBatch]:
        """Yield the images; one that cannot be read yields its error in its place."""
        yield from DataLoader(
            _DecodeDataset(self.paths, batch_size, image_size),
            batch_size=None,
            num_workers=loader_workers,
            prefetch_factor=PREFETCH_BATCHES if loader_workers else None,
        )


@dataclass(frozen=True)
class ShardSplit:
    """One split of a data set."""

    location: str
    split: str

    def __len__(self) -> int:
        return read_index(self.location).samples_in(self.split)

    def batches(self, *, batch_size: int, image_size: int, loader_workers: int) -> Iterator[ImageBatch]:
        """Yield the samples by the names of the files they were packed from.

        Raises:
            DamagedShard: A shard or a sample is not what the index says.
        """
        index = read_index(self.location)
        plan = EpochPlan(index=index, split=self.split, batch_size=batch_size, shuffle=False)
        for batch in open_batches(self.location, index, plan, image_size=image_size, loader_workers=loader_workers):
            yield ImageBatch(files=batch.sources, errors=(None,) * len(batch.sources), pixels=batch.images)


ImageSource: TypeAlias = ImageFiles | ShardSplit


def image_sources(images: tuple[str, ...], split: str | None = None) -> tuple[ImageSource, ...]:
    """Return what the given files, folders and shards hold, in their order; folders by name.

    Raises:
        SpecError: One does not exist, holds no image, or has no such split.
        BadIndex, SourceError: An index is damaged, or a URL of a kind that is not allowed.
    """
    return tuple(part for given in images for part in _parts(given, split))


def _parts(given: str, split: str | None) -> tuple[ImageSource, ...]:
    folder = local_folder(given)
    if folder is None or (folder / INDEX_NAME).is_file():
        return _splits(given, split)
    if folder.is_dir():
        return (ImageFiles(_files_below(folder)),)
    if not folder.exists():
        raise SpecError(f"{given} does not exist; give image files, folders of images, or shards")
    return (ImageFiles((str(folder),)),)


def _splits(location: str, split: str | None) -> tuple[ShardSplit, ...]:
    found = read_index(location).splits
    if split is not None and split not in found:
        raise SpecError(f"{location} has no split {split!r}; it has {', '.join(found)}")
    return tuple(ShardSplit(location, name) for name in ((split,) if split else found))


def _files_below(folder: Path) -> tuple[str, ...]:
    found = [name for name in files_below(folder) if is_image_file(name)]
    if not found:
        raise SpecError(f"{folder} holds no {FORMAT_NAMES} image")
    return tuple(sorted(found))


class _DecodeDataset(Dataset[Any]):
    """Turns a stretch of paths into a chunk, in a loader worker."""

    def __init__(self, paths: tuple[str, ...], batch_size: int, image_size: int) -> None:
        self.paths, self.batch_size, self.image_size = np.array(paths, dtype=np.str_), batch_size, image_size

    def __len__(self) -> int:
        return math.ceil(len(self.paths) / self.batch_size)

    def __getitem__(self, number: int) -> ImageBatch:
        if number >= len(self):
            raise IndexError(number)
        files = tuple(map(str, self.paths[number * self.batch_size : (number + 1) * self.batch_size]))
        found = [self._read(file) for file in files]
        pixels = [image for image in found if not isinstance(image, str)]
        side = self.image_size
        return ImageBatch(
            files=files,
            errors=tuple(error if isinstance(error, str) else None for error in found),
            pixels=torch.from_numpy(np.stack(pixels)) if pixels else torch.empty((0, 3, side, side), dtype=torch.uint8),
        )

    def _read(self, file: str) -> Any:
        """Return the pixels (3, S, S) uint8 of a file, or why there are none; gray images get three equal channels."""
        try:
            return decode_square(read_image_file(file), size=self.image_size, color="RGB")
        except (BadImage, ShardError) as error:
            return str(error)


SAMPLES = 16


def sample_images(given: str | None, settings: Settings, manifest: Mapping[str, Any], *, image_size: int) -> Tensor:
    """Return up to `SAMPLES` images, (n, 3, S, S) uint8, evenly drawn from `given` or from the model's own data.

    Raises:
        SpecError: There are none.
    """
    part = image_sources((given or _own_data(settings, manifest),))[-1]  # of shards the last split: test before train
    pixels = _drawn(part, image_size)
    if not len(pixels):
        raise SpecError(f"none of the images of {given} can be read; name others with --samples")
    return pixels.expand(-1, 3, -1, -1).contiguous()


def _own_data(settings: Settings, manifest: Mapping[str, Any]) -> str:
    """Return the shards of the run that published the model."""
    try:
        shards = str(read_json(RunPaths.of(settings.storage, str(manifest.get("run"))).spec)["shards"])
        read_index(shards)
    except (ClusterError, ShardError, KeyError) as error:
        raise SpecError(
            "the data that the model was trained on are not here; name images or shards with --samples"
        ) from error
    return shards


def _drawn(part: ImageSource, image_size: int) -> Tensor:
    chosen = np.unique(np.linspace(0, len(part) - 1, SAMPLES).round().astype(int)).tolist()
    if isinstance(part, ImageFiles):
        files = ImageFiles(tuple(part.paths[number] for number in chosen))
        return torch.cat(
            [chunk.pixels for chunk in files.batches(batch_size=SAMPLES, image_size=image_size, loader_workers=0)]
        )
    index = read_index(part.location)
    batches = read_samples(part.location, index, part.split, chosen, image_size=image_size)
    return torch.cat([batch.images for batch in batches])
