"""What `shards add` must know of the images that a data set has already, in small files beside the shards.

A file `images-*.jsonl.gz` has a header, then for each of some shards a line with the shard's sha256, and a line for
each of its images in stored order. The files are derived data, and the index does not name them: an image without a
record is read from its shard.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from data_shards.atomic import atomic_path
from data_shards.index import Shard, ShardIndex
from data_shards.locations import local_folder
from data_shards.pack.write import Sample
from data_shards.targets import Label

PATTERN = "images-*.jsonl.gz"
HEADER = {"nightshift": "image records", "version": 1}
DAMAGE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError)


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image of a data set.

    Attributes:
        source: Name of the file that it was packed from.
        group: Its group, "" if it has none.
        label: Position of its class; in a multi-label data set its targets.
        width: Width of the source image in pixels, upright.
        height: Height of the same.
        sha256: sha256 of the source file; "" if the record was made from the shard.
        stored_sha256: sha256 of the stored image; "" if the record was made from the source file.
        phash: Perceptual hash in hexadecimal, "" for a flat image.
    """

    source: str
    group: str
    label: Label
    width: int
    height: int
    sha256: str
    stored_sha256: str
    phash: str

    @classmethod
    def of(cls, sample: Sample) -> "ImageRecord":
        """Return the record of a sample that was just written."""
        return cls(
            source=sample.info["source"],
            group=sample.info.get("group", ""),
            label=sample.label,
            width=sample.info["width"],
            height=sample.info["height"],
            sha256=sample.sha256,
            stored_sha256="",
            phash=sample.phash,
        )


@dataclass(frozen=True, kw_only=True)
class GroupCounts:
    """Number of groups (patients or cases) of some images. Images without a group are each a group of their own.

    Attributes:
        every: Of all of them.
        present: Of those of each class, or of those that have each label.
        absent: Of those that lack each label; empty if an image has one class.
    """

    every: int
    present: tuple[int, ...]
    absent: tuple[int, ...] = ()

    @classmethod
    def of(cls, images: Sequence[ImageRecord], index: ShardIndex) -> "GroupCounts":
        """Count the groups of images of a data set."""
        names = [image.group or image.sha256 or image.stored_sha256 for image in images]
        labels = [image.label for image in images]

        def count(value: int) -> tuple[int, ...]:
            found = [set[str]() for _ in index.classes]
            for name, label in zip(names, labels, strict=True):
                for c, target in enumerate(label if isinstance(label, tuple) else ()):
                    if target == value:
                        found[c].add(name)
                if isinstance(label, int):
                    found[label].add(name)
            return tuple(map(len, found))

        return cls(every=len(set(names)), present=count(1), absent=count(0) if index.multi_label else ())


Records: TypeAlias = dict[str, list[ImageRecord]]  # those of a shard by its sha256


def records_of(
    shards: Iterable[Shard], samples: Mapping[str, Sequence[Sample]]
) -> Iterator[tuple[Shard, list[ImageRecord]]]:
    """Yield each shard with the records of its images, given the samples of each split in their order."""
    written = dict.fromkeys(samples, 0)
    for shard in shards:
        start = written[shard.split]
        written[shard.split] += shard.samples
        yield shard, [ImageRecord.of(sample) for sample in samples[shard.split][start : start + shard.samples]]


def write_records(folder: Path, shards: Iterable[tuple[Shard, Sequence[ImageRecord]]]) -> Path:
    """Write the records of some shards to a file named by the shards, and return its path."""
    shards = list(shards)
    name = hashlib.sha256("".join(shard.sha256 for shard, _ in shards).encode()).hexdigest()[:16]
    path = folder / PATTERN.replace("*", name)
    # Without a name and a time in the file: equal records give equal bytes.
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file,
    ):
        file.writelines(json.dumps(line).encode() + b"\n" for line in _lines(shards))
    return path


def read_records(folder: Path, index: ShardIndex) -> tuple[Records, list[str]]:
    """Return the records of the index's shards as far as there are any, and the names of files that are damaged."""
    found: Records = {}
    damaged = []
    for path in sorted(folder.glob(PATTERN)):
        try:
            found |= dict(_read(path))
        except DAMAGE:
            damaged.append(path.name)
    sizes = {shard.sha256: shard.samples for shard in index.shards}
    return {sha256: records for sha256, records in found.items() if sizes.get(sha256) == len(records)}, damaged


def group_counts(location: str, index: ShardIndex, *splits: str) -> dict[str, GroupCounts]:
    """Return the groups of each split, and of `splits` such as `train+valid`, as far as the images' records say."""
    folder = local_folder(location)
    if folder is None or not index.grouped:
        return {}
    records, _ = read_records(folder.expanduser(), index)
    known = {
        split: [records.get(shard.sha256) for shard in index.of_split(split)] for split in (*index.splits, *splits)
    }
    return {
        split: GroupCounts.of([image for of_shard in found if of_shard for image in of_shard], index)
        for split, found in known.items()
        if None not in found
    }


def groups_by_split(location: str, index: ShardIndex) -> dict[str, int]:
    """Return the number of groups (patients or cases) of each split, as far as the records of the images say."""
    return {split: counts.every for split, counts in group_counts(location, index).items()}


def remove_records(folder: Path) -> None:
    """Remove all records of a folder."""
    for path in folder.glob(PATTERN):
        path.unlink()


def shards_without(records: Mapping[str, object], index: ShardIndex) -> list[Shard]:
    """Return the shards of an index that have no records."""
    return [shard for shard in index.shards if shard.sha256 not in records]


def _lines(shards: Iterable[tuple[Shard, Sequence[ImageRecord]]]) -> Iterator[Any]:
    yield HEADER
    for shard, records in shards:
        yield {"shard": shard.sha256, "samples": len(records)}
        yield from map(astuple, records)


def _read(path: Path) -> Iterator[tuple[str, list[ImageRecord]]]:
    with gzip.open(path) as file:
        if json.loads(file.readline()) != HEADER:
            raise ValueError("another format")
        for line in file:
            head = json.loads(line)
            yield head["shard"], [_record(json.loads(file.readline())) for _ in range(head["samples"])]


def _record(values: list[Any]) -> ImageRecord:
    source, group, label, width, height, sha256, stored_sha256, phash = values
    return ImageRecord(
        source=str(source),
        group=str(group),
        label=tuple(label) if isinstance(label, list) else int(label),
        width=int(width),
        height=int(height),
        sha256=str(sha256),
        stored_sha256=str(stored_sha256),
        phash=str(phash),
    )
