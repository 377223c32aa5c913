"""Reads one sample of a shard by its offsets, checks and decodes it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_shards.errors import BadImage, DamagedShard, UnreadableShard
from data_shards.index import ShardIndex
from data_shards.pixels import MAX_PACKED_MEGAPIXELS, Pixels, decode_square
from data_shards.tar_index import key_of
from data_shards.targets import Label, Targets, parse_targets


class StoredSample(NamedTuple):
    """A sample as its shard stores it.

    Attributes:
        label: Position of its class; in a multi-label data set its targets.
        info: The json member: source, group, width and height of the source image, crc32 of the stored image.
    """

    label: Label
    image: bytes
    info: dict[str, Any]


@dataclass(frozen=True)
class Extent:
    """The place of a sample in a shard's file.

    Attributes:
        shard: Name of the shard; `path` may be that of a cached copy.
        sample_id: The sample's id in its split.
        edges: Start and size of label, image and json, as in a `SampleTable`.
        shift: Added to the id if several splits are read as one.
    """

    shard: str
    path: Path
    sample_id: int
    edges: tuple[int, ...]
    shift: int = 0

    @property
    def where(self) -> str:
        """Shard and key, for errors."""
        return f"{self.shard}: sample {key_of(self.sample_id)}"


def read_sample(extent: Extent, *, index: ShardIndex) -> StoredSample:
    """Return a sample's three members.

    Raises:
        DamagedShard: The label or json is invalid, or the file is truncated or cannot be read.
        FileNotFoundError: The file does not exist.
    """
    starts, sizes = extent.edges[0::2], extent.edges[1::2]
    first, last = min(starts), max(map(sum, zip(starts, sizes, strict=True)))
    raw = _bytes(extent, first, last - first)
    if len(raw) != last - first:
        raise DamagedShard(f"{extent.where} is cut off; copy the shard again")
    label, image, info = (raw[s - first : s - first + size] for s, size in zip(starts, sizes, strict=True))
    read_label = _targets if index.multi_label else _label
    return StoredSample(read_label(label, len(index.classes), extent.where), image, _info(info, extent.where))


def read_square(extent: Extent, *, index: ShardIndex, size: int) -> tuple[StoredSample, Pixels]:
    """Return a sample and its pixels, uint8 (C, size, size).

    Raises:
        DamagedShard: The sample cannot be read or decoded; the text names shard and key.
    """
    sample = read_sample(extent, index=index)
    try:
        pixels = decode_square(sample.image, size=size, color=index.color, max_megapixels=MAX_PACKED_MEGAPIXELS)
        return sample, pixels
    except BadImage as error:
        raise DamagedShard(f"{extent.where}: {error}") from error


def _bytes(extent: Extent, start: int, size: int) -> bytes:
    try:
        with extent.path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(size)
    except FileNotFoundError:
        raise  # the cache may have evicted the copy; the caller downloads it again
    except OSError as error:
        raise UnreadableShard.by(error, extent.where) from error


def _label(raw: bytes, classes: int, where: str) -> int:
    text = raw.decode("ascii", "replace")
    if not text.isdigit() or int(text) >= classes:
        raise DamagedShard(f"{where} has the label {text!r}, outside the {classes} classes; pack again")
    return int(text)


def _targets(raw: bytes, classes: int, where: str) -> Targets:
    text = raw.decode("ascii", "replace")
    found = parse_targets(text, classes)
    if found is None:
        raise DamagedShard(f"{where} has the targets {text!r}, not {classes} of 1, 0 and -1; pack again")
    return found


def _info(raw: bytes, where: str) -> dict[str, Any]:
    try:
        info = json.loads(raw)
    except ValueError as error:
        raise DamagedShard(f"{where}: its json cannot be read ({error}); pack again") from error
    if not isinstance(info, dict):
        raise DamagedShard(f"{where}: its json is not an object; pack again")
    return info
