"""Writes the shards of a pack: encoded images into tar files of a given size."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_shards.atomic import atomic_path, write_text_atomic
from data_shards.index import Shard
from data_shards.tar_index import BLOCK, key_of
from data_shards.targets import Label, count_labels, label_text

MTIME = 0  # a fixed time, so that the same samples give the same bytes
MIN_SHARDS = 8  # per split, however small: a shard for each worker of a machine


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample to write.

    Attributes:
        content: File of encoded images that holds this one.
        start: Offset of the image's first byte in that file.
        label: Position of its class in the index; in a multi-label data set its targets.
        info: Content of the sample's json member.
        sha256: sha256 of the source file, which the shard does not store.
        phash: Perceptual hash of the image, likewise.
    """

    content: Path
    start: int
    size: int
    suffix: str
    label: Label
    info: dict[str, Any]
    sha256: str = ""
    phash: str = ""


@dataclass(frozen=True, kw_only=True)
class AfterShards:
    """What a split has already, for shards that are added to it.

    Attributes:
        number: Number in the name of the first new shard.
        samples: Number of samples of the split, and so of the first new sample.
        least_shards: About so many shards, however few samples there are.
    """

    number: int = 0
    samples: int = 0
    least_shards: int = MIN_SHARDS


NEW_SPLIT = AfterShards()


def write_shards(
    folder: Path,
    records: Path,
    split: str,
    samples: Sequence[Sample],
    *,
    shard_bytes: int,
    classes: int,
    after: AfterShards = NEW_SPLIT,
) -> Iterator[Shard]:
    """Write one split's samples in their order and yield each shard once it is complete under its name.

    A shard that an interrupted pack wrote from the same samples is kept. A JSON record in the folder `records` says
    which samples those were. It is removed before its shard is rewritten, so it never describes another shard.
    """
    for number, (start, end) in enumerate(_cuts(samples, shard_bytes, after.least_shards), after.number):
        path = folder / f"{split}-{number:05d}.tar"
        record = records / f"{path.name}.json"
        first = after.samples + start
        identity = _identity(samples[start:end], first, classes)
        shard = _kept(path, record, identity)
        if shard is None:
            record.unlink(missing_ok=True)
            shard = write_shard(path, split, samples[start:end], first=first, classes=classes)
            write_text_atomic(record, json.dumps({"identity": identity, "shard": shard.model_dump(mode="json")}))
        yield shard


def _kept(path: Path, record: Path, identity: str) -> Shard | None:
    """Return the shard that an interrupted pack wrote from the same samples, if any."""
    if not (record.exists() and path.exists()):
        return None
    content = json.loads(record.read_text())
    return Shard.model_validate(content["shard"]) if content["identity"] == identity else None


def _identity(samples: Sequence[Sample], first: int, classes: int) -> str:
    facts = [(sample.label, sample.suffix, sample.size, sample.info) for sample in samples]
    return hashlib.sha256(json.dumps([first, classes, facts], sort_keys=True).encode()).hexdigest()


def _cuts(samples: Sequence[Sample], shard_bytes: int, least_shards: int) -> Iterator[tuple[int, int]]:
    """Yield the slice of samples of each shard: up to `shard_bytes`, for about `least_shards`, at least one sample."""
    sizes = [sample.size + 6 * BLOCK for sample in samples]  # three headers, two small members, padding
    most = min(shard_bytes, -(-sum(sizes) // least_shards))
    first, used = 0, 0
    for number, size in enumerate(sizes):
        if used and used + size > most:
            yield first, number
            first, used = number, 0
        used += size
    if used:
        yield first, len(samples)


def write_shard(path: Path, split: str, samples: Sequence[Sample], *, first: int, classes: int) -> Shard:
    """Write one shard of the given samples; the first has the number `first` in its split."""
    from webdataset import TarWriter  # noqa: PLC0415 (imports torch, which only packing should wait for)

    with atomic_path(path) as temporary, temporary.open("wb") as file:
        counted = _HashingFile(file)
        with TarWriter(counted, encoder=False, mtime=MTIME, user="", group="") as tar:
            for sample_id, sample in enumerate(samples, first):
                tar.write(_members(sample, key_of(sample_id)))
    per_class, unknown = count_labels([sample.label for sample in samples], classes)
    return Shard(
        name=path.name,
        split=split,
        samples=len(samples),
        per_class=per_class,
        unknown=unknown,
        bytes=counted.size,
        sha256=counted.digest.hexdigest(),
    )


def _members(sample: Sample, key: str) -> dict[str, Any]:
    with sample.content.open("rb") as file:
        file.seek(sample.start)
        image = file.read(sample.size)
    info = json.dumps(sample.info, sort_keys=True).encode()
    return {"__key__": key, "cls": label_text(sample.label).encode(), sample.suffix: image, "json": info}


class _HashingFile:
    """Writes to a file and keeps the size and sha256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)
