"""Finds images that are the same, or nearly: by the bytes of the file, and by a perceptual hash.

A near duplicate is a copy that was scaled or compressed anew. On chest X-rays such copies differed in at most 10 of
256 bits of the hash, different films of one patient in 54 or more, of two patients in 58 or more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

NEAR_BITS = 20
BLOCK = 4096  # rows and columns of the matrix of distances at a time: 64 MB


@dataclass(frozen=True, kw_only=True)
class ImageHash:
    """What images are compared by.

    Attributes:
        sha256: Of the source file.
        phash: Perceptual hash in hexadecimal, "" for an image without any structure to compare.
    """

    name: str
    sha256: str
    phash: str


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two images that are the same, or nearly.

    Attributes:
        bits: By how many bits their perceptual hashes differ; 0 with `exact` for the same bytes.
    """

    first: str
    second: str
    exact: bool
    bits: int

    def __str__(self) -> str:
        likeness = "are the same file" if self.exact else f"look the same ({self.bits} of 256 bits differ)"
        return f"{self.first} and {self.second} {likeness}"


def find_near_duplicates(
    hashes: Sequence[ImageHash], split_of: Mapping[str, str] | None = None
) -> tuple[DuplicatePair, ...]:
    """Return pairs of images that are the same or nearly so. Time grows with the square of the number of images.

    Not every pair, of which a thousand frames of a film have half a million, but enough to join all that are alike;
    with `split_of`, also one for each image and other split that it was found in.
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
    """Return the pairs that stand in two splits."""
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
