"""Compares a data set with its index: every byte, count, label and image."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_shards.errors import DamagedShard
from data_shards.files import ShardFiles
from data_shards.index import Shard, read_index
from data_shards.reading import Extent, read_square

SMALL = 32  # decoding to so few pixels still reads every byte of an image


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a data set."""

    shard: str
    text: str


def verify(location: str) -> Iterator[tuple[Shard, tuple[Fault, ...]]]:
    """Yield each shard with its faults, none for a sound one.

    Raises:
        BadIndex: There is no readable index to compare with.
    """
    index = read_index(location)
    files = ShardFiles(location, index)
    for shard in index.shards:
        yield shard, tuple(_faults(files, shard))


def _faults(files: ShardFiles, shard: Shard) -> Iterator[Fault]:
    try:
        table = files.table_of(shard)
    except DamagedShard as error:
        yield Fault(shard.name, str(error))
        return
    index, found = files.index, [0] * len(files.index.classes)
    for number, edges in enumerate(table.extents.tolist(), table.first):
        try:
            extent = Extent(table.path, number, tuple(edges))
            sample, _ = read_square(extent, classes=len(index.classes), size=SMALL, color=index.color)
            found[sample.label] += 1
        except DamagedShard as error:
            yield Fault(shard.name, str(error))
    if tuple(found) != shard.per_class:
        yield Fault(shard.name, f"{shard.name} has {found} samples a class, the index says {list(shard.per_class)}")
