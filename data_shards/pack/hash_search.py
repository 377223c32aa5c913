"""Finds all pairs of 256-bit hashes within a Hamming distance without comparing all pairs, and without misses.

The bits are divided into blocks. By the pigeonhole principle, two hashes within `LIMIT` bits differ in at most `r` bits
of one block, where the `r + 1` of all blocks add up to `LIMIT + 1`. For each block there are `2 ** (r + 1) - 1` masks,
constructed so that for any `r` positions at least one mask leaves all of them out (covering codes: Pagh, "Locality-
sensitive Hashing without False Negatives", SODA 2016). Hashes that agree under a mask are candidates, found by sorting.
Each mask keeps about half of a block, so that few hashes agree by chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 256
LIMIT = 40  # bits in which near-duplicates differ at most
BLOCKS = 5  # 1,531 masks that keep 26 bits on average: a million hashes seldom agree by chance
FEW, FEW_BLOCKS = 20_000, 8  # 280 masks that keep 16 bits are enough for so many hashes
SMALL = 256  # so many are all compared with each other
WORD = 64
DRAWS = 64  # random codes of which the best is taken
MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd constant spreads the bits of a key (Fibonacci hashing, Knuth 6.4)

Words = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class HashSet:
    """Hashes to compare.

    Attributes:
        plain: (n, 4) words of the hash of each image.
        mirrored: (n, 4) words of the hash of each image after mirroring; 0 rows to search no mirrored copies.
        opposite: (4,) words of the bits that differ between an image and its inverted copy.
        splits: (n,) bit set of the splits that have an image with this hash. Pairs within one split are found only as
            far as they connect copies.
    """

    plain: Words
    mirrored: Words
    opposite: Words
    splits: Numbers


@dataclass(frozen=True, kw_only=True)
class NearPairs:
    """Pairs of hashes within the limit: (p,) arrays.

    Attributes:
        bits: Number of bits that differ.
        mirrored: Whether the second image resembles the mirrored first one.
        inverted: Whether it resembles the inverted one.
        first_meets: Bit set of the splits of the second that the first had not met before; `second_meets` likewise.
    """

    first: Numbers
    second: Numbers
    bits: Numbers
    mirrored: Flags
    inverted: Flags
    first_meets: Numbers
    second_meets: Numbers


def near_pairs(hashes: HashSet) -> NearPairs:
    """Return pairs of hashes within `LIMIT` bits.

    They connect all hashes that a chain of such pairs connects, and there is one for each hash and each other split
    that has a hash within the limit. Memory grows linearly with the number of hashes, time somewhat faster: each
    mask sorts all of them (a million took 17.5 times as long as 100,000).
    """
    return _Search(hashes).run()


class _Search:
    """One search. Entry e is the hash of image e, or of the mirrored image e - n for n images.

    Images are in random order: neighbors in a run of equal keys are of different splits and soon meet.
    """

    def __init__(self, hashes: HashSet) -> None:
        self.images = np.random.default_rng(0).permutation(len(hashes.plain))
        mirrored = hashes.mirrored[self.images] if len(hashes.mirrored) else hashes.mirrored
        self.words = np.concatenate([hashes.plain[self.images], mirrored])
        self.opposite, self.splits = hashes.opposite, hashes.splits[self.images]
        self.most_inverted = int(_ones(self.opposite[None])[0]) - LIMIT  # as many bits differ between inverted copies
        self.parent = np.arange(len(self.images))  # of a union-find over the images
        self.met = self.splits.copy()  # the splits that each image need not meet any more, its own included
        self.found: list[NearPairs] = []

    def run(self) -> NearPairs:
        bits = np.uint64(len(self.words).bit_length())
        entries = np.arange(len(self.words), dtype=np.uint64)
        for key in _keys(self.words, self.opposite):
            mixed = key * MIX >> bits << bits  # in the high bits; the entry comes into the low ones
            mixed |= entries
            mixed.sort()
            continues = (mixed[1:] ^ mixed[:-1]) >> bits == 0
            self._compare_runs(mixed & ((np.uint64(1) << bits) - np.uint64(1)), np.append(continues, False))
        return self._result()

    def _compare_runs(self, entries: Words, continues: Flags) -> None:
        """Compare entries within each run of equal keys; `continues` says where the next entry is of the same run."""
        left = np.flatnonzero(continues)
        for offset in count(1):
            if not len(left):
                return
            self._compare(entries[left].astype(np.int64), entries[left + offset].astype(np.int64))
            left = left[continues[left + offset]]
            if offset & (offset + 1) == 0 and len(left):  # at 1, 3, 7, ...: a run of near copies is connected soon
                left = left[self._is_open(entries, continues, left)]

    def _is_open(self, entries: Words, continues: Flags, left: Numbers) -> Flags:
        """Whether the run of each position still has images that are not connected, or have not met a split."""
        begins = np.append(True, ~continues[:-1])
        run_of = np.cumsum(begins) - 1
        starts = np.flatnonzero(begins)
        runs, place = np.unique(run_of[left], return_inverse=True)
        lengths = np.diff(np.append(starts, len(entries)))[runs]
        members = self._image(entries[_ranges(starts[runs], lengths)].astype(np.int64))
        edges = np.cumsum(lengths) - lengths
        roots = self._roots(members)
        splits = np.bitwise_or.reduceat(self.splits[members], edges)
        missing = np.bitwise_or.reduceat(np.repeat(splits, lengths) & ~self.met[members], edges)
        is_open: Flags = (np.minimum.reduceat(roots, edges) != np.maximum.reduceat(roots, edges)) | (missing != 0)
        return is_open[place]

    def _compare(self, left: Numbers, right: Numbers) -> None:
        """Keep the pairs within the limit that connect images, or meet a split. `left` is below `right`."""
        plain_left = left < len(self.images)  # two mirrored hashes say the same as the two plain ones
        left, right = left[plain_left], right[plain_left]
        differing = np.take(self.words, left, axis=0) ^ np.take(self.words, right, axis=0)
        plain = _ones(differing)
        near = np.flatnonzero((plain <= LIMIT) | (plain >= self.most_inverted))
        left, right, plain = left[near], right[near], plain[near]
        inverted = _ones(differing[near] ^ self.opposite)
        bits, image = np.minimum(plain, inverted), self._image(right)
        new = np.flatnonzero((bits <= LIMIT) & (left != image) & self._is_new(left, image))
        if len(new):
            is_mirrored = right[new] >= len(self.images)
            self._add(left[new], image[new], bits[new], is_mirrored, (inverted < plain)[new])

    def _image(self, entries: Numbers) -> Numbers:
        return np.where(entries < len(self.images), entries, entries - len(self.images))

    def _is_new(self, first: Numbers, second: Numbers) -> Flags:
        meets = (self.splits[second] & ~self.met[first]) | (self.splits[first] & ~self.met[second])
        is_new: Flags = (meets != 0) | (self._roots(first) != self._roots(second))
        return is_new

    def _add(self, first: Numbers, second: Numbers, bits: Numbers, mirrored: Flags, inverted: Flags) -> None:
        pairs = NearPairs(
            first=first,
            second=second,
            bits=bits,
            mirrored=mirrored,
            inverted=inverted,
            first_meets=self.splits[second] & ~self.met[first],
            second_meets=self.splits[first] & ~self.met[second],
        )
        self.found.append(pairs)
        np.bitwise_or.at(self.met, first, self.splits[second])
        np.bitwise_or.at(self.met, second, self.splits[first])
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            high, low = sorted((self._root(one), self._root(other)), reverse=True)
            self.parent[high] = low

    def _root(self, image: int) -> int:
        while (parent := int(self.parent[image])) != image:
            self.parent[image] = image = int(self.parent[parent])
        return image

    def _roots(self, images: Numbers) -> Numbers:
        roots = self.parent[images]
        while not np.array_equal(above := self.parent[roots], roots):
            roots = above
        self.parent[images] = roots
        return roots

    def _result(self) -> NearPairs:
        """Return what was found with the images' own numbers, in order."""
        names = ("first", "second", "bits", "first_meets", "second_meets", "mirrored", "inverted")
        empty = np.zeros(0, dtype=np.int64)
        columns = {name: np.concatenate([empty, *(getattr(pairs, name) for pairs in self.found)]) for name in names}
        first, second = self.images[columns["first"]], self.images[columns["second"]]
        order = np.lexsort((np.maximum(first, second), np.minimum(first, second)))
        return NearPairs(
            first=first[order],
            second=second[order],
            bits=columns["bits"][order],
            mirrored=columns["mirrored"][order].astype(bool),
            inverted=columns["inverted"][order].astype(bool),
            first_meets=columns["first_meets"][order],
            second_meets=columns["second_meets"][order],
        )


def _keys(words: Words, opposite: Words) -> Iterator[Words]:
    """Yield the (n,) keys of each table. A hash and its inverted copy have one key: the lower of both."""
    if len(words) <= SMALL:
        yield np.zeros(len(words), dtype=np.uint64)
        return
    blocks = FEW_BLOCKS if len(words) <= FEW else BLOCKS
    spare = LIMIT + 1 - blocks  # the radii add up to this
    for number, block in enumerate(np.array_split(np.random.default_rng(1).permutation(HASH_BITS), blocks)):
        radius = spare // blocks + (number < spare % blocks)
        bits, flipped = _block(words, block), _block(opposite[None], block)[0]
        for mask in _covering_masks(len(block), radius):
            kept = bits & mask
            yield np.minimum(kept, kept ^ (flipped & mask))


def _block(words: Words, positions: Numbers) -> Words:
    """Return (n,) words with the bits at some positions of (n, 4) words."""
    found = np.zeros(len(words), dtype=np.uint64)
    for place, position in enumerate(positions.tolist()):
        bit = words[:, position // WORD] >> np.uint64(position % WORD) & np.uint64(1)
        found |= bit << np.uint64(place)
    return found


def _covering_masks(bits: int, radius: int) -> list[np.uint64]:
    """Return masks of `bits` bits, of which at least one leaves out any `radius` positions.

    Position i has a vector m(i) of radius + 1 bits. The mask of a vector v != 0 keeps the positions where m(i) and v
    have an odd number of ones in common. Any `radius` vectors m(i) are orthogonal to some v != 0, and its mask leaves
    their positions out. Of several random choices of m the one with the fewest agreements by chance is taken.
    """
    random = np.random.default_rng(2)
    vectors = np.arange(1, 1 << (radius + 1))
    best: Flags | None = None
    for _ in range(DRAWS):
        chosen = random.choice(vectors, bits, replace=bits > len(vectors))
        kept = np.bitwise_count(vectors[:, None] & chosen) % 2 == 1  # (masks, bits)
        if best is None or _chance(kept) < _chance(best):
            best = kept
    assert best is not None  # noqa: S101 -- DRAWS is positive
    return [np.uint64(sum(1 << place for place in np.flatnonzero(row).tolist())) for row in best]


def _chance(kept: Flags) -> float:
    return float(np.exp2(-kept.sum(axis=1)).sum())


def _ones(words: Words) -> Numbers:
    ones = np.bitwise_count(words)
    total: Numbers = ones[:, 0].astype(np.int64)
    for column in range(1, HASH_BITS // WORD):  # faster than a sum along so short an axis
        total += ones[:, column]
    return total


def _ranges(starts: Numbers, lengths: Numbers) -> Numbers:
    """Return the numbers from each start on, as many as its length, end to end."""
    firsts = np.cumsum(lengths) - lengths
    return np.repeat(starts - firsts, lengths) + np.arange(lengths.sum())
