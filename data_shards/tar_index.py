"""The byte offsets of the samples in a shard, from a strict reading of the tar headers.

Other readers stop silently at a damaged header and accept any member. This one accepts only the layout that `shards
pack` writes, so that a sample can be read by its offset.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DamagedShard, UnreadableShard
from data_shards.index import Shard, find_size_fault

BLOCK = 512  # block size of a tar file (POSIX.1-1988, ustar)
MEMBER = re.compile(r"([0-9]{8})\.(cls|jpg|png|json)")
CHECKSUM = slice(148, 156)
BLANK_CHECKSUM_SUM = 8 * 0x20  # the checksum counts its own field as blanks
KINDS = ("cls", "image", "json")


class Member(NamedTuple):
    """One member of a tar file: its bytes are `file[start:start + size]`."""

    key: str
    kind: str
    start: int
    size: int


class SampleTable(NamedTuple):
    """The samples of one shard in stored order.

    Attributes:
        first: Id of the first sample in its split; the others follow.
        extents: int64 (samples, 6): start and size of the label, image and json of each sample.
    """

    path: Path
    first: int
    extents: NDArray[np.int64]


def key_of(sample_id: int) -> str:
    """Return the key of a sample in its shard: its id with leading zeros."""
    return f"{sample_id:08d}"


def read_table(path: Path, shard: Shard, *, first: int) -> SampleTable:
    """Return the byte offsets of the samples of a shard, after checking every header.

    Raises:
        DamagedShard: A header, name, order or count differs from what `shards pack` writes.
    """
    try:
        with path.open("rb") as file:
            members = _members(file, shard)
    except OSError as error:
        raise UnreadableShard.by(error, shard.name) from error
    rows = []
    for number, (_, sample) in enumerate(groupby(members, key=lambda member: member.key), first):
        by_kind = sorted(sample, key=lambda member: member.kind)
        _check_sample(shard, by_kind, key_of(number))
        rows.append([edge for member in by_kind for edge in (member.start, member.size)])
    if len(rows) != shard.samples:
        raise DamagedShard(f"{shard.name} holds {len(rows)} samples, the index says {shard.samples}; copy it again")
    return SampleTable(path, first, np.array(rows, dtype=np.int64))


def find_byte_fault(path: Path, shard: Shard) -> str | None:
    """Return why a shard cannot be read, or how its size or sha256 differs from the index; None if they agree."""
    try:
        return read_byte_fault(path, shard)
    except OSError as error:
        return f"{shard.name} cannot be read ({error.strerror})"


def read_byte_fault(path: Path, shard: Shard) -> str | None:
    """Return how a shard's size or sha256 differs from the index, None if they agree.

    Raises:
        OSError: It cannot be read.
    """
    if fault := find_size_fault(path, shard):
        return fault
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        return f"{shard.name} has sha256 {found[:12]}..., the index says {shard.sha256[:12]}..."
    return None


def _check_sample(shard: Shard, sample: Sequence[Member], key: str) -> None:
    if tuple(member.kind for member in sample) != KINDS or sample[0].key != key:
        found = ", ".join(f"{member.key}.{member.kind}" for member in sample)
        raise DamagedShard(
            f"{shard.name}: sample {key} should be one label, image and json, but there is {found}; pack again"
        )


def _members(file: BinaryIO, shard: Shard) -> list[Member]:
    size = file.seek(0, os.SEEK_END)
    offset, members, last = 0, [], "the start"
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            break
        name, length = _parse(header, f"{shard.name}: header after {last}")
        match = MEMBER.fullmatch(name)
        if match is None:
            raise DamagedShard(f"{shard.name}: member {name!r} after {last} is not part of a sample; pack again")
        kind = "image" if match[2] in ("jpg", "png") else match[2]
        members.append(Member(match[1], kind, offset + BLOCK, length))
        offset += BLOCK + -(-length // BLOCK) * BLOCK
        last = name
        if offset > size:
            raise DamagedShard(f"{shard.name}: cut off within {last}; copy it again")
    if any(file.read()):
        raise DamagedShard(f"{shard.name}: data after its end; copy it again")
    return members


def _parse(header: bytes, where: str) -> tuple[str, int]:
    """Return the name and size of a regular file's header."""
    if len(header) < BLOCK:
        raise DamagedShard(f"{where} is cut off; copy the shard again")
    stated = header[CHECKSUM].rstrip(b"\0 ")
    actual = sum(header) - sum(header[CHECKSUM]) + BLANK_CHECKSUM_SUM
    try:
        if int(stated, 8) != actual:
            raise ValueError(stated)
        size = int(header[124:136].rstrip(b"\0 "), 8)
    except ValueError as error:
        raise DamagedShard(f"{where} is damaged; copy the shard again") from error
    if header[156:157] not in (b"0", b"\0"):
        raise DamagedShard(f"{where} is not a regular file; pack again")
    return header[:100].rstrip(b"\0").decode("ascii", "replace"), size
