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
            found |= {sha256: [_record(row) for row in rows] for sha256, rows in _read(path)}
        except DAMAGE:
            damaged.append(path.name)
    sizes = {shard.sha256: shard.samples for shard in index.shards}
    return {sha256: records for sha256, records in found.items() if sizes.get(sha256) == len(records)}, damaged


def read_groups(path: Path) -> Iterator[tuple[str, list[tuple[str, Label]]]]:
    """Yield for each shard in a file of records its sha256, and the group and the label of each of its images.

    An image without a group has its own hash for a group. Takes half the time of reading all of the records.

    Raises:
        One of `DAMAGE`: The file is damaged.
    """
    for sha256, rows in _read(path):
        yield sha256, [_group_and_label(row) for row in rows]


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


def _group_and_label(row: list[Any]) -> tuple[str, Label]:
    _, group, label, _, _, sha256, stored_sha256, _ = row
    return str(group or sha256 or stored_sha256), _label(label)


def _label(value: Any) -> Label:
    return tuple(value) if isinstance(value, list) else int(value)


def _read(path: Path) -> Iterator[tuple[str, list[list[Any]]]]:
    """Yield for each shard in a file of records its sha256 and the rows of its images."""
    with gzip.open(path) as file:
        if json.loads(file.readline()) != HEADER:
            raise ValueError("another format")
        for line in file:
            head = json.loads(line)
            yield head["shard"], [json.loads(file.readline()) for _ in range(head["samples"])]


def _record(values: list[Any]) -> ImageRecord:
    source, group, label, width, height, sha256, stored_sha256, phash = values
    return ImageRecord(
        source=str(source),
        group=str(group),
        label=_label(label),
        width=int(width),
        height=int(height),
        sha256=str(sha256),
        stored_sha256=str(stored_sha256),
        phash=str(phash),
    )
