"""Splits images into train, valid and test, stratified by class, with each group in one split. Pure.

With several labels per image, the greedy assignment weighs a label by its rarity, as iterative stratification does
(Sechidis et al. 2011).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_shards.counted import counted
from data_shards.errors import SourceError
from data_shards.index import SPLITS
from data_shards.targets import PRESENT

Shares = tuple[float, float, float]
Stratum = tuple[str, int]  # a class or label, and PRESENT or ABSENT

ANY_IMAGE: Stratum = ("", PRESENT)  # so that images without any known label are divided by the shares too


@dataclass(frozen=True, kw_only=True)
class LabeledImage:
    """An image to assign to a split.

    Attributes:
        label: Its class; "" in a multi-label data set.
        group: Images of one group stay together; an image without a group has one of its own.
        targets: In a multi-label data set each known label, and whether the image has it.
    """

    name: str
    label: str
    group: str
    targets: tuple[Stratum, ...] | None = None

    @property
    def strata(self) -> tuple[Stratum, ...]:
        """What each split should have its share of."""
        return ((self.label, PRESENT),) if self.targets is None else (ANY_IMAGE, *self.targets)


def parse_shares(text: str) -> Shares:
    """Return the shares of train, valid and test of a text such as 70/15/15; they sum to 1.

    Raises:
        SourceError: The text is not three numbers, none negative and the first above 0.
    """
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError as error:
        raise SourceError(f"--split {text} is not like 70/15/15; give the shares of train, valid and test") from error
    total = sum(parts)
    if len(parts) != len(SPLITS) or min(parts) < 0 or not 0 < parts[0] <= total < float("inf"):
        raise SourceError(f"--split {text} is not three shares of train, valid and test; write 70/15/15")
    return parts[0] / total, parts[1] / total, parts[2] / total


def merge_groups(group_of: Mapping[str, str], duplicates: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the group of each image after the groups of near-duplicates are merged."""
    parent = {group: group for group in group_of.values()}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for first, second in duplicates:
        low, high = sorted((root(group_of[first]), root(group_of[second])))
        parent[high] = low
    return {name: root(group) for name, group in group_of.items()}


def groups_in_two(splits: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a line for each group that has images in several splits, given one image of each split of each group."""
    return [
        f"group {group} is in {' and '.join(f'{split} ({found[split]})' for split in sorted(found))}"
        for group, found in sorted(splits.items())
        if len(found) > 1
    ]


def stratified_group_split(images: Sequence[LabeledImage], shares: Shares, *, seed: int) -> dict[str, str]:
    """Return the split of each image by its name.

    Each group, the largest first, goes to the split that lacks most of the group's classes; the seed decides the order
    of equal ones. Every class is in every split that has a share; of a label also an image that lacks it.

    Raises:
        SourceError: A class has fewer groups than there are splits, or its groups hold other classes too.
    """
    used = [split for split, share in zip(SPLITS, shares, strict=True) if share]
    groups = _strata_of_groups(images)
    _check_enough(groups, len(used))
    placed = place_groups(images, shares, seed=seed, before={})
    _fill_gaps(placed, groups, used)
    return {image.name: placed[image.group] for image in images}


def place_groups(
    images: Sequence[LabeledImage], shares: Shares, *, seed: int, before: Mapping[str, Mapping[Stratum, int]]
) -> dict[str, str]:
    """Return the split of each group: the largest first, each goes to the split that lacks most of its classes.

    The shares are those of these images and the ones `before` together, which gives the number of images of each class
    that each split has already. A class may be missing from a split.
    """
    groups = _strata_of_groups(images)
    sizes = sum(map(Counter, before.values()), sum(groups.values(), Counter[Stratum]()))
    lacking = {
        split: {c: share * n - before.get(split, {}).get(c, 0) for c, n in sizes.items()}
        for split, share in zip(SPLITS, shares, strict=True)
        if share
    }
    placed: dict[str, str] = {}
    for group in sorted(groups, key=lambda g: (-groups[g].total(), _draw(seed, g))):
        placed[group] = max(lacking, key=lambda s: sum(n * lacking[s][c] / sizes[c] for c, n in groups[group].items()))
        for label, count in groups[group].items():
            lacking[placed[group]][label] -= count
    return placed


def _strata_of_groups(images: Sequence[LabeledImage]) -> dict[str, Counter[Stratum]]:
    groups: dict[str, Counter[Stratum]] = {}
    for image in images:
        groups.setdefault(image.group, Counter()).update(image.strata)
    return groups


def _check_enough(groups: Mapping[str, Counter[Stratum]], splits: int) -> None:
    having = Counter(label for classes in groups.values() for label in classes)
    for stratum, count in sorted(having.items()):
        if count < splits and stratum != ANY_IMAGE:
            images = sum(classes[stratum] for classes in groups.values())
            found = counted(images, "image") + ("" if images == count else f" of {counted(count, 'group')}")
            raise SourceError(
                f"{_named(stratum)} has {found} for {splits} splits; "
                f"add more, use --drop-class {stratum[0]!r}, or sort the images into split folders"
            )


def _named(stratum: Stratum) -> str:
    """Return the name of a stratum for an error."""
    label, value = stratum
    return f"class {label!r}" if value == PRESENT else f"the absence of {label!r}"


def _fill_gaps(placed: dict[str, str], groups: Mapping[str, Counter[Stratum]], splits: Sequence[str]) -> None:
    """Move the smallest group that another split can spare to each split that has no image of a class."""
    having = Counter((placed[group], label) for group, classes in groups.items() for label in classes)
    for label in sorted({label for classes in groups.values() for label in classes} - {ANY_IMAGE}):
        for split in (split for split in splits if not having[split, label]):
            spare = [g for g in placed if groups[g][label] and all(having[placed[g], c] > 1 for c in groups[g])]
            if not spare:
                raise SourceError(
                    f"{_named(label)} cannot be in every split without dividing a group; add groups of it, or use "
                    f"--drop-class {label[0]!r}"
                )
            moved = min(spare, key=lambda group: (groups[group].total(), group))
            having.subtract((placed[moved], c) for c in groups[moved])
            having.update((split, c) for c in groups[moved])
            placed[moved] = split


def _draw(seed: int, group: str) -> str:
    return hashlib.sha256(f"{seed} {group}".encode()).hexdigest()
