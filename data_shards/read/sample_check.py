"""Finds the damaged samples of a shard by reading every one."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DamagedShard
from data_shards.index import Shard, ShardIndex
from data_shards.samples import Extent, read_square
from data_shards.tar_index import key_of, read_table
from data_shards.targets import Label, count_labels

SMALL = 32  # pixels; decoding to a small size still reads every byte of an image


@dataclass(frozen=True)
class Fault:
    """One fault of a data set.

    Attributes:
        key: Key of the sample, None if the fault is not one sample's.
        text: One line that names the shard, and the sample if there is one.
    """

    shard: str
    key: str | None
    text: str


def find_sample_faults(path: Path, shard: Shard, *, first: int, index: ShardIndex) -> Iterator[Fault]:
    """Read every sample of a shard and yield the faults of its headers, labels, images and counts."""
    try:
        table = read_table(path, shard, first=first)
    except DamagedShard as error:
        yield Fault(shard.name, None, str(error))
        return
    labels: list[Label] = []
    for number, edges in enumerate(table.extents.tolist(), first):
        extent = Extent(shard.name, path, number, tuple(edges))
        try:
            labels.append(_checked_label(extent, index))
        except DamagedShard as error:
            yield Fault(shard.name, key_of(number), str(error))
    found, unknown = count_labels(labels, len(index.classes)) if labels else ((0,) * len(index.classes), shard.unknown)
    if found != shard.per_class:
        text = f"{shard.name} has {list(found)} good samples of its classes, the index says {list(shard.per_class)}"
        yield Fault(shard.name, None, text)
    if unknown != shard.unknown:
        text = f"{shard.name} has {list(unknown)} unknown targets, the index says {list(shard.unknown)}"
        yield Fault(shard.name, None, text)


def _checked_label(extent: Extent, index: ShardIndex) -> Label:
    sample, _ = read_square(extent, index=index, size=SMALL)
    if zlib.crc32(sample.image) != sample.info.get("crc32"):
        raise DamagedShard(f"{extent.where}: its image was changed after packing; copy the shard again")
    return sample.label
