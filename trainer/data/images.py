"""Images given as files, folders or shards, read in order and in batches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
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
from data_shards.errors import BadImage, ShardError, TooManyPixels
from data_shards.index import INDEX_NAME, ShardIndex, read_index
from data_shards.locations import local_folder
from data_shards.pack.encode import encoded_like_packed
from data_shards.pixels import MAX_MEGAPIXELS, Pixels, decode_square, is_image_file, read_image_file
from data_shards.plan import EpochPlan
from data_shards.read.loader_processes import LoaderProcesses, share
from data_shards.read.stream import open_batches, read_samples
from trainer.data.folder_scan import scan_folder
from trainer.errors import SpecError
from trainer.model.head import HeadConfig

PREFETCH_BATCHES = 2  # per loader worker
CHANNELS = 3  # of a decoded file
SAMPLES = 16  # images that an exported file is compared with its model on


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """A batch of images in order.

    Attributes:
        files: File name of each image.
        errors: Why an image could not be read; None for a readable image.
        pixels: (B, C, S, S) uint8 of the readable images, in the same order.
    """

    files: tuple[str, ...]
    errors: tuple[str | None, ...]
    pixels: Tensor


@dataclass(frozen=True)
class ImageFiles:
    """Files by path, whether they are images or not.

    Attributes:
        ignored: Number of system files and hidden files that were left out.
    """

    paths: tuple[str, ...]
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def batches(
        self, config: HeadConfig, *, batch_size: int, loader_workers: int, prefetch_bytes: int | None = None
    ) -> Iterator[ImageBatch]:
        """Yield the images as the model's training data had them; an unreadable file has an error instead of pixels."""
        batch_bytes = min(batch_size, len(self.paths)) * CHANNELS * config.image_size**2
        loaders = LoaderProcesses(loader_workers, PREFETCH_BATCHES).within(prefetch_bytes, batch_bytes=batch_bytes)
        loader = DataLoader(
            _DecodeDataset(self.paths, batch_size, config),
            batch_size=None,
            num_workers=loaders.count,
            prefetch_factor=loaders.prefetch_factor,
        )
        for batch in loader:
            if isinstance(batch, ShardError):
                raise batch
            yield batch


@dataclass(frozen=True)
class ShardSplit:
    """One split of a data set."""

    location: str
    split: str

    def __len__(self) -> int:
        return self.index.samples_in(self.split)

    @cached_property
    def index(self) -> ShardIndex:
        """The index, read once: images may be added to the data set meanwhile."""
        return read_index(self.location)

    @property
    def ignored(self) -> int:
        """Number of files that were left out: none."""
        return 0

    def batches(
        self, config: HeadConfig, *, batch_size: int, loader_workers: int, prefetch_bytes: int | None = None
    ) -> Iterator[ImageBatch]:
        """Yield the samples with the names of the files that they were packed from.

        Raises:
            DamagedShard: A shard or a sample differs from the index.
        """
        index = self.index
        plan = EpochPlan(index=index, split=self.split, batch_size=batch_size, shuffle=False)
        for batch in open_batches(
            self.location,
            index,
            plan,
            image_size=config.image_size,
            loader_workers=loader_workers,
            prefetch_bytes=prefetch_bytes,
        ):
            yield ImageBatch(files=batch.sources, errors=(None,) * len(batch.sources), pixels=batch.images)


ImageSource: TypeAlias = ImageFiles | ShardSplit


def image_sources(images: tuple[str, ...], split: str | None = None) -> tuple[ImageSource, ...]:
    """Return the images of the given files, folders and shards in the given order; within a folder in order of name.

    Files that follow each other are one source, so that they share batches and loader workers.

    Raises:
        SpecError: A path does not exist, a folder is empty, or shards have no such split.
        BadIndex, SourceError: An index is damaged, or a URL has a scheme that is not allowed.
    """
    parts = (part for given in images for part in _parts(given, split))
    groups = (list(group) for _, group in groupby(parts, key=type))
    return tuple(source for group in groups for source in _joined(group))


def _joined(parts: Sequence[ImageSource]) -> Sequence[ImageSource]:
    """Return parts of one kind; files as a single one."""
    files = [part for part in parts if isinstance(part, ImageFiles)]
    if not files:
        return parts
    return [ImageFiles(tuple(path for part in files for path in part.paths), sum(part.ignored for part in files))]


def _parts(given: str, split: str | None) -> tuple[ImageSource, ...]:
    folder = local_folder(given)
    if folder is None or (folder / INDEX_NAME).is_file():
        return _splits(given, split)
    if folder.is_dir():
        return (_files_below(folder),)
    if not folder.exists():
        raise SpecError(f"{given} does not exist; give image files, folders of images, or shards")
    return (ImageFiles((str(folder),)),)


def _splits(location: str, split: str | None) -> tuple[ShardSplit, ...]:
    found = read_index(location).splits
    if split is not None and split not in found:
        raise SpecError(f"{location} has no split {split!r}; it has {', '.join(found)}")
    return tuple(ShardSplit(location, name) for name in ((split,) if split else found))


def _files_below(folder: Path) -> ImageFiles:
    scan = scan_folder(folder)
    if not scan.paths:
        others = f" except {scan.ignored} ignored system files" if scan.ignored else ""
        raise SpecError(f"{folder} has no files{others}; give a folder with images")
    return ImageFiles(scan.paths, scan.ignored)


class _DecodeDataset(Dataset[Any]):
    """Reads and decodes batches of files, in a loader worker."""

    def __init__(self, paths: tuple[str, ...], batch_size: int, config: HeadConfig) -> None:
        self.paths, self.batch_size, self.config = np.array(paths, dtype=np.str_), batch_size, config

    def __len__(self) -> int:
        return math.ceil(len(self.paths) / self.batch_size)

    def __getitem__(self, number: int) -> ImageBatch | ShardError:
        """Return a batch, or the error of a loader worker, which is not raised with its traceback."""
        if number >= len(self):
            raise IndexError(number)
        try:
            batch = self._decoded(number)
            share(batch.pixels)
        except ShardError as error:
            return error
        return batch

    def _decoded(self, number: int) -> ImageBatch:
        files = tuple(map(str, self.paths[number * self.batch_size : (number + 1) * self.batch_size]))
        found = [self._read(file) for file in files]
        pixels = [image for image in found if not isinstance(image, str)]
        side = self.config.image_size
        return ImageBatch(
            files=files,
            errors=tuple(error if isinstance(error, str) else None for error in found),
            pixels=torch.from_numpy(np.stack(pixels))
            if pixels
            else torch.empty((0, CHANNELS, side, side), dtype=torch.uint8),
        )

    def _read(self, file: str) -> Pixels | str:
        """Return the pixels (3, S, S) uint8 of a file, or the reason why it has none; gray images are repeated to RGB.

        Any fault of a decoder concerns one file only. The reason contains no file name.
        """
        try:
            data = read_image_file(file)
            return input_pixels(data, self.config)
        except TooManyPixels as error:
            return f"{error}; scale it down"
        except BadImage as error:
            return str(error)
        except Exception as error:
            return f"its pixels cannot be decoded ({type(error).__name__})"


def input_pixels(data: bytes, config: HeadConfig) -> Pixels:
    """Return an image file's pixels (3, S, S) uint8 as the model gets them; gray is repeated to RGB.

    The image goes through the same steps as the training images: it is encoded like in their shards, then decoded. A
    film as a file and the same film in shards have the same pixels.

    Raises:
        BadImage: It cannot be decoded, or is too large.
    """
    if config.pack is None:
        return decode_square(data, size=config.image_size, color="RGB")
    size, color = config.image_size, config.color
    most = max(config.pack.max_megapixels, MAX_MEGAPIXELS)
    stored = encoded_like_packed(data, replace(config.pack, max_megapixels=most))
    pixels = decode_square(stored, size=size, color=color, max_megapixels=most)
    return pixels if color == "RGB" else pixels.repeat(3, axis=0)


def sample_images(given: str | None, settings: Settings, manifest: Mapping[str, Any], *, config: HeadConfig) -> Tensor:
    """Return up to `SAMPLES` images, (n, 3, S, S) uint8, evenly spaced in `given` or in the model's own data.

    Raises:
        SpecError: There are no readable images.
    """
    sources = image_sources((given or _training_shards(settings, manifest),))
    part = sources[-1]  # the last split of shards, which is test if there is one
    pixels = _sample(part, config)
    if not len(pixels):
        raise SpecError(f"no image in {given} can be read; give other images with --samples")
    return pixels.expand(-1, 3, -1, -1).contiguous()


def _training_shards(settings: Settings, manifest: Mapping[str, Any]) -> str:
    """Return the shards of the run that published the model."""
    try:
        shards = str(read_json(RunPaths.of(settings.storage, str(manifest.get("run"))).spec)["shards"])
        read_index(shards)
    except (ClusterError, ShardError, KeyError) as error:
        raise SpecError(
            "the shards that the model was trained on do not exist here; give images or shards with --samples"
        ) from error
    return shards


def _sample(part: ImageSource, config: HeadConfig) -> Tensor:
    if isinstance(part, ImageFiles):
        images = [path for path in part.paths if is_image_file(path)] or part.paths
        files = ImageFiles(tuple(images[number] for number in _evenly_spaced(len(images))))
        batches = files.batches(config, batch_size=SAMPLES, loader_workers=0)
        return torch.cat([batch.pixels for batch in batches])
    chosen = _evenly_spaced(len(part))
    index = part.index
    samples = read_samples(part.location, index, part.split, chosen, image_size=config.image_size)
    return torch.cat([batch.images for batch in samples])


def _evenly_spaced(count: int) -> list[int]:
    return [int(number) for number in np.unique(np.linspace(0, count - 1, SAMPLES).round())]
