"""Finds duplicates by the sha256 of the file, and near-duplicates by a perceptual hash.

A near-duplicate is a copy that was resized, recompressed, mirrored, inverted, or changed a little in contrast, crop or
rotation. Of 499 chest X-rays, copies with another contrast (x 1.3) or a crop of 1 % differed in at most 40 of the
hash's 256 bits, 99 % of those rotated by 1 degree too. Films of different patients differed in 58 bits or more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.cluster.hierarchy import DisjointSet

from data_shards.pack.hash_search import HASH_BITS, LIMIT, WORD, HashSet, near_pairs

NEAR_BITS = LIMIT
HASH_SIDE = 16  # the perceptual hash has HASH_SIDE ** 2 bits
HASHED_PIXELS = 4 * HASH_SIDE  # side of the image that the hash is computed from, as in imagehash
FLAT_LEVELS = 8  # an image with less contrast has no structure to compare: all flat images would have one hash
HEX_DIGITS = HASH_BITS // 4


@dataclass(frozen=True, kw_only=True)
class ImageHash:
    """The hashes by which images are compared.

    Attributes:
        sha256: sha256 of the source file.
        phash: What `perceptual_hash` returns, "" for an image without structure.
    """

    name: str
    sha256: str
    phash: str


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two duplicates or near-duplicates.

    Attributes:
        exact: Whether their files have the same bytes.
        bits: Number of bits in which their perceptual hashes differ.
        mirrored: Whether one resembles the mirrored other.
        inverted: Whether one resembles the inverted other, black for white.
    """

    first: str
    second: str
    exact: bool
    bits: int
    mirrored: bool = False
    inverted: bool = False

    def __str__(self) -> str:
        if self.exact:
            return f"{self.first} and {self.second} are the same file"
        kinds = " and ".join(kind for kind in ("mirrored", "inverted") if getattr(self, kind))
        changed = f", {kinds}" if kinds else ""
        return f"{self.first} and {self.second} are near-duplicates{changed} ({self.bits} of {HASH_BITS} bits differ)"


def perceptual_hash(image: Image.Image) -> str:
    """Return the perceptual hash of an image and that of the mirrored image in hexadecimal, "" for a flat one."""
    gray = image.convert("L")
    darkest, brightest = gray.getextrema()
    if brightest - darkest < FLAT_LEVELS:  # type: ignore[operator]  # a gray image has one pair
        return ""
    small = gray.resize((HASHED_PIXELS, HASHED_PIXELS), Image.Resampling.LANCZOS)
    return "".join(str(imagehash.phash(one, hash_size=HASH_SIDE)) for one in (small, ImageOps.mirror(small)))


def find_near_duplicates(
    hashes: Sequence[ImageHash], split_of: Mapping[str, str] | None = None
) -> tuple[DuplicatePair, ...]:
    """Return pairs of duplicates and near-duplicates. Time grows somewhat faster than linearly with
    the number of images: `hash_search.near_pairs` has a figure.

    A thousand copies have half a million pairs; the pairs returned are enough to connect all copies. With `split_of`
    there is also a pair for each image and each other split that has a copy of it. The earlier image is the first.
    """
    place = {one.name: number for number, one in enumerate(hashes)}
    pairs = [_in_order(pair, place) for pair in _all_pairs(hashes, split_of)]
    clusters, met = DisjointSet(name for pair in pairs for name in (pair.first, pair.second)), set[tuple[str, str]]()
    found = []
    for pair in pairs:
        joins = clusters.merge(pair.first, pair.second)
        if split_of is not None and split_of[pair.first] != split_of[pair.second]:
            meets = {(pair.first, split_of[pair.second]), (pair.second, split_of[pair.first])}
            joins = joins or not meets <= met
            met |= meets
        if joins:
            found.append(pair)
    return tuple(found)


def across_splits(pairs: Sequence[DuplicatePair], split_of: Mapping[str, str]) -> tuple[DuplicatePair, ...]:
    """Return the pairs whose images are in two splits."""
    return tuple(pair for pair in pairs if split_of[pair.first] != split_of[pair.second])


def _in_order(pair: DuplicatePair, place: Mapping[str, int]) -> DuplicatePair:
    if place[pair.first] < place[pair.second]:
        return pair
    return replace(pair, first=pair.second, second=pair.first)


def _all_pairs(hashes: Sequence[ImageHash], split_of: Mapping[str, str] | None) -> Iterator[DuplicatePair]:
    """Yield pairs that connect all copies and meet all splits, the same files first; some of them say the same."""
    files: dict[str, list[ImageHash]] = {}
    for one in hashes:
        files.setdefault(one.sha256, []).append(one)
    same_hash: dict[str, list[ImageHash]] = {}
    for copies in files.values():
        yield from _connected(_Copies(copies, split_of), exact=True)
        if copies[0].phash:
            same_hash.setdefault(copies[0].phash, []).extend(copies)
    groups = [_Copies(copies, split_of) for copies in same_hash.values()]
    for group in groups:
        yield from _connected(group, exact=False)
    yield from _near(list(same_hash), groups)


class _Copies:
    """Images with one hash, and the first of them in each split."""

    def __init__(self, images: Sequence[ImageHash], split_of: Mapping[str, str] | None) -> None:
        self.images, self.split_of = images, split_of
        self.firsts: dict[str, ImageHash] = {}
        for image in images:
            self.firsts.setdefault(self.split(image), image)

    def split(self, image: ImageHash) -> str:
        return "" if self.split_of is None else self.split_of[image.name]


def _connected(copies: _Copies, *, exact: bool) -> Iterator[DuplicatePair]:
    """Yield a pair for each copy and the first one, and for each copy and the first one of each other split."""
    for image in copies.images[1:]:
        for first in (copies.images[0], *copies.firsts.values()):
            is_needed = first is copies.images[0] or copies.split(first) != copies.split(image)
            if first is not image and is_needed and (exact or first.sha256 != image.sha256):
                yield DuplicatePair(first=first.name, second=image.name, exact=exact, bits=0)


def _near(phashes: Sequence[str], groups: Sequence[_Copies]) -> Iterator[DuplicatePair]:
    """Yield pairs of near-duplicates: between the first images of two hashes, and where an image meets a split."""
    names = sorted({split for group in groups for split in group.firsts})
    splits = {split: 1 << number for number, split in enumerate(names)}
    sets = [sum(splits[split] for split in group.firsts) for group in groups]
    found = near_pairs(_hash_set(phashes, sets))
    for number in range(len(found.first)):
        a, b = int(found.first[number]), int(found.second[number])
        one, other = groups[a], groups[b]
        pairs = [(one.images[0], other.images[0])]
        for split, bit in splits.items():
            if found.first_meets[number] & bit:
                pairs += [(image, other.firsts[split]) for image in one.images if one.split(image) != split]
            if found.second_meets[number] & bit:
                pairs += [(one.firsts[split], image) for image in other.images if other.split(image) != split]
        for first, second in pairs:
            yield DuplicatePair(
                first=first.name,
                second=second.name,
                exact=False,
                bits=int(found.bits[number]),
                mirrored=bool(found.mirrored[number]),
                inverted=bool(found.inverted[number]),
            )


def _hash_set(phashes: Sequence[str], splits: Sequence[int]) -> HashSet:
    """Return the hashes for the search. The hash of an inverted image has every bit inverted but that of its mean."""
    opposite = np.full(HASH_BITS, 1, dtype=np.uint8)
    opposite[0] = 0  # the mean brightness stays above the median of the frequencies
    mirrored = [text[HEX_DIGITS:] for text in phashes]
    return HashSet(
        plain=_words([text[:HEX_DIGITS] for text in phashes]),
        mirrored=_words(mirrored if all(mirrored) else []),
        opposite=np.packbits(opposite).view(np.uint64),
        splits=np.array(splits, dtype=np.int64),
    )


def _words(texts: Sequence[str]) -> NDArray[np.uint64]:
    raw = np.frombuffer(bytes.fromhex("".join(texts)), dtype=np.uint8)
    return raw.view(np.uint64).reshape(-1, HASH_BITS // WORD)
