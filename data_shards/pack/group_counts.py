"""Counts the groups of a data set, such as patients, from the records of its images; it keeps only their names."""

from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeAlias

from data_shards.index import BOTH, Shard, ShardIndex
from data_shards.locations import local_folder
from data_shards.pack.image_records import DAMAGE, PATTERN, read_groups
from data_shards.targets import ABSENT, Label, positions_of

# By the name of a group: bit c is set if an image of it has class or label c, and bit C + c if one lacks label c of C.
Groups: TypeAlias = dict[str, int]


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


def group_counts(location: str, index: ShardIndex, *splits: str) -> dict[str, GroupCounts]:
    """Return the groups of each split, and of `splits` such as `train+valid`, as far as the images' records say."""
    folder = local_folder(location)
    if folder is None or not index.grouped:
        return {}
    groups, known = _read_groups(folder.expanduser(), index)
    return {
        split: _counted([groups[name] for name in split.split(BOTH) if name in groups], index)
        for split in (*index.splits, *splits)
        if all(shard.sha256 in known for shard in index.of_split(split))
    }


def groups_by_split(location: str, index: ShardIndex) -> dict[str, int]:
    """Return the number of groups (patients or cases) of each split, as far as the records of the images say."""
    return {split: counts.every for split, counts in group_counts(location, index).items()}


def _read_groups(folder: Path, index: ShardIndex) -> tuple[dict[str, Groups], set[str]]:
    """Return the groups of each split, and the sha256 of the shards whose images are counted."""
    groups, known = {split: Groups() for split in index.splits}, set[str]()
    for path in sorted(folder.glob(PATTERN), reverse=True):  # if two files have a shard, the last one counts
        try:
            of_file, counted = _groups_in(path, index, known)
        except DAMAGE:
            continue
        for split, found in of_file.items():
            groups[split] = _joined([groups[split], found])
        known |= counted
    return groups, known


def _groups_in(path: Path, index: ShardIndex, known: Set[str]) -> tuple[dict[str, Groups], set[str]]:
    """Return the groups of each split in one file of records, and the sha256 of its shards; none of `known` shards.

    Raises:
        One of `DAMAGE`: The file is damaged.
    """
    shards, bits = defaultdict[str, list[Shard]](list), cache(partial(_bits, classes=len(index.classes)))
    for shard in index.shards:
        if shard.sha256 not in known:
            shards[shard.sha256].append(shard)
    groups, counted = {split: Groups() for split in index.splits}, set[str]()
    for sha256, images in read_groups(path):
        for shard in shards.get(sha256, ()):
            if shard.samples != len(images):
                continue
            counted.add(sha256)
            of_split = groups[shard.split]
            for name, label in images:
                of_split[name] = of_split.get(name, 0) | bits(label)
    return groups, counted


def _bits(label: Label, *, classes: int) -> int:
    """Return the bits of the labels of one image.

    Raises:
        ValueError: There is no such class, or another number of labels.
    """
    absent = [c for c, target in enumerate(label) if target == ABSENT] if isinstance(label, tuple) else []
    present = positions_of(label)
    if not all(0 <= c < classes for c in (*present, *absent)):
        raise ValueError(f"the label {label} is outside of the {classes} classes")
    return sum(1 << c for c in present) | sum(1 << classes + c for c in absent)


def _joined(parts: Sequence[Groups]) -> Groups:
    joined = dict(parts[0]) if parts else Groups()
    for groups in parts[1:]:
        for name, bits in groups.items():
            joined[name] = joined.get(name, 0) | bits
    return joined


def _counted(parts: Sequence[Groups], index: ShardIndex) -> GroupCounts:
    """Return the counts of groups that are in one or several splits."""
    groups = parts[0] if len(parts) == 1 else _joined(parts)
    classes = len(index.classes)
    combinations = Counter(groups.values()).items()  # few of them, if there are few labels
    numbers = [sum(number for bits, number in combinations if bits >> bit & 1) for bit in range(2 * classes)]
    return GroupCounts(
        every=len(groups),
        present=tuple(numbers[:classes]),
        absent=tuple(numbers[classes:]) if index.multi_label else (),
    )
