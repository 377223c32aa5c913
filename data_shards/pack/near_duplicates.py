"""Finds duplicates by the sha256 of the file, and near duplicates by a perceptual hash.

A near duplicate is a resized or recompressed copy. On chest X-rays such copies differed in at most 10 of the hash's
256 bits, different films of one patient in 54 or more, films of two patients in 58 or more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

NEAR_BITS = 20  # near duplicates differ in at most so many bits
BLOCK = 4096  # rows and columns of the distance matrix computed at a time: 64 MB


@dataclass(frozen=True, kw_only=True)
class ImageHash:
    """The hashes by which images are compared.

    Attributes:
        sha256: sha256 of the source file.
        phash: Perceptual hash in hexadecimal, "" for an image without structure.
    """

    name: str
    sha256: str
    phash: str


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two duplicates or near duplicates.

    Attributes:
        exact: Whether their files have the same bytes.
        bits: Number of bits in which their perceptual hashes differ.
    """

    first: str
    second: str
    exact: bool
    bits: int

    def __str__(self) -> str:
        relation = "are the same file" if self.exact else f"are near duplicates ({self.bits} of 256 bits differ)"
        return f"{self.first} and {self.second} {relation}"


def find_near_duplicates(
    hashes: Sequence[ImageHash], split_of: Mapping[str, str] | None = None
) -> tuple[DuplicatePair, ...]:
    """Return pairs of duplicates and near duplicates. Time is quadratic in the number of images.

    A thousand copies have half a million pairs; the pairs returned are enough to connect all copies. With `split_of`
    there is also a pair for each image and each other split that has a copy of it.
    """
    clusters, met = DisjointSet(one.name for one in hashes), set[tuple[str, str]]()
    found = []
    for pair in _all_duplicates(hashes):
        joins = clusters.merge(pair.first, pair.second)
        if split_of is not None and split_of[pair.first] != split_of[pair.second]:
            meets = {(pair.first, split_of[pair.second]), (pair.second, split_of[pair.first])}
            joins = joins or not meets <= met
            met |= meets
        if joins:
            found.append(pair)
    return tuple(found)


def _all_duplicates(hashes: Sequence[ImageHash]) -> Iterator[DuplicatePair]:
    by_sha: dict[str, ImageHash] = {}
    for one in hashes:
        first = by_sha.setdefault(one.sha256, one)
        if first is not one:
            yield DuplicatePair(first=first.name, second=one.name, exact=True, bits=0)
    distinct = [one for one in by_sha.values() if one.phash]
    for row, column, bits in _near_pairs([one.phash for one in distinct]):
        yield DuplicatePair(first=distinct[row].name, second=distinct[column].name, exact=False, bits=bits)


def across_splits(pairs: Sequence[DuplicatePair], split_of: Mapping[str, str]) -> tuple[DuplicatePair, ...]:
    """Return the pairs whose images are in two splits."""
    return tuple(pair for pair in pairs if split_of[pair.first] != split_of[pair.second])


def _near_pairs(hashes: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    if not hashes:
        return
    signs = _signs(hashes)
    bits = signs.shape[1]
    for top in range(0, len(signs), BLOCK):
        for left in range(top, len(signs), BLOCK):
            products = signs[top : top + BLOCK] @ signs[left : left + BLOCK].T  # of -1 and 1: bits - 2 * distance
            for row, similar in enumerate(products >= bits - 2 * NEAR_BITS):
                for column in np.flatnonzero(similar).tolist():
                    if top + row < left + column:
                        yield top + row, left + column, int(bits - products[row, column]) // 2


def _signs(hashes: Sequence[str]) -> NDArray[np.float32]:
    raw = np.frombuffer(b"".join(bytes.fromhex(text) for text in hashes), dtype=np.uint8)
    return np.unpackbits(raw.reshape(len(hashes), -1), axis=1).astype(np.float32) * 2 - 1
