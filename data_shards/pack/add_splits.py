"""Gives each new image of a data set its split: that of its group or of its near-duplicates, else by the shares."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from data_shards.errors import LeakageError
from data_shards.index import SPLITS
from data_shards.pack.known_images import KnownImages
from data_shards.pack.labels.cells import group_spelling
from data_shards.pack.near_duplicates import DuplicatePair, ImageHash, find_near_duplicates
from data_shards.pack.split import LabeledImage, Stratum, groups_in_two, merge_groups, parse_shares, place_groups
from data_shards.targets import Targets, contradiction

SHOWN = 3  # findings in an error; it carries all of them
OLD, NEW = "old ", "new "  # before the number of an image, so that an old and a new one of one name differ


@dataclass(frozen=True, kw_only=True)
class NewImage:
    """A new image to assign to a split.

    Attributes:
        labeled: Its name, labels and group; the group is its own if `grouped` is not set.
        grouped: Whether its group may have images in the data set.
        split: The split that the source gives it, None if its group, its near-duplicates or the shares decide.
        class_or_targets: Its class, or its targets in a multi-label data set.
    """

    labeled: LabeledImage
    grouped: bool
    split: str | None
    class_or_targets: str | Targets
    sha256: str
    phash: str


@dataclass(frozen=True, kw_only=True)
class AddedSplits:
    """The split of each new image.

    Attributes:
        splits: Split of each new image by its name.
        duplicates: Lines that connect new images with identical or nearly identical ones of their split,
            whose labels agree.
        contradictions: Lines that connect such images whose labels do not agree.
        leakage: A line for each such pair, and each group, in two splits; empty unless that was allowed.
    """

    splits: dict[str, str]
    duplicates: tuple[str, ...]
    contradictions: tuple[str, ...]
    leakage: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How new groups are divided.

    Attributes:
        text: Shares of train, valid and test, such as "70/15/15".
        before: Number of images of each class in each split, which count as divided already.
        seed: Random seed of the order of equal groups.
    """

    text: str
    before: Mapping[str, Mapping[Stratum, int]]
    seed: int


def assign_new_images(
    images: Sequence[NewImage], known: KnownImages, classes: Sequence[str], shares: Shares, *, allow_leakage: bool
) -> AddedSplits:
    """Return the split of each new image.

    Args:
        images: The new images.
        known: The images of the data set.
        classes: Its classes, or labels.
        shares: How to divide images without a split whose group is new.
        allow_leakage: Whether the data set was packed although an image or group is in two splits.

    Raises:
        LeakageError: The same image or group would be in two splits.
    """
    neighbors = _Neighbors.of(images, known, classes)
    splits = _split(images, neighbors, shares)
    leaking = {pair for pair in neighbors.pairs if len(neighbors.splits_of_pair(pair, splits)) > 1}
    leakage = (*neighbors.groups_across(images, splits), *sorted(neighbors.line(pair) for pair in leaking))
    if leakage and not allow_leakage:
        raise _leaking(leakage)
    contradicting = neighbors.contradicting()
    return AddedSplits(
        splits=splits,
        duplicates=tuple(neighbors.line(p) for p in neighbors.pairs if p not in leaking and p not in contradicting),
        contradictions=tuple(f"{neighbors.line(pair)}: {labels}" for pair, labels in contradicting.items()),
        leakage=leakage,
    )


def check_groups(
    groups: Mapping[str, str], splits: Mapping[str, str | None], known: KnownImages, *, allow_leakage: bool
) -> None:
    """Refuse groups that would be in two splits, before any image is decoded.

    Args:
        groups: Group of each new image by its name.
        splits: Split that the source gives each new image, None if it gives none.
        known: The images of the data set.
        allow_leakage: Whether the data set was packed although a group is in two splits.

    Raises:
        LeakageError: The text names some of the groups.
    """
    known_splits = _group_splits(known)
    found: dict[str, dict[str, str]] = {}
    for name, group in groups.items():
        if split := splits[name]:
            found.setdefault(group, dict(known_splits.get(group, {}))).setdefault(split, name)
    leakage = groups_in_two(found)
    if leakage and not allow_leakage:
        raise _leaking(leakage)


def _group_splits(known: KnownImages) -> dict[str, dict[str, str]]:
    """Return one image in each split of each group."""
    splits: dict[str, dict[str, str]] = {}
    for split, record in known:
        if record.group:
            splits.setdefault(group_spelling(record.group), {}).setdefault(split, record.source)
    return splits


def _leaking(leakage: Sequence[str]) -> LeakageError:
    what = "1 new image or group" if len(leakage) == 1 else f"{len(leakage)} new images or groups"
    return LeakageError(
        f"{what} would be in two splits, such as {'; '.join(leakage[:SHOWN])}; "
        "move them into the split of the data set that has them, or remove them from the source",
        tuple(leakage),
    )


@dataclass(frozen=True, kw_only=True)
class _Neighbors:
    """What connects new images with each other and with old ones.

    Attributes:
        pairs: Duplicates and near-duplicates of which at least one is new, by keys of the images.
        names: Name of each image by its key.
        labels: Class or targets of each image by its key.
        old_splits: Split of each old image by its key.
        group_splits: One image in each split of each group of the data set.
    """

    pairs: tuple[DuplicatePair, ...]
    names: dict[str, str]
    labels: dict[str, str | Targets]
    old_splits: dict[str, str]
    group_splits: dict[str, dict[str, str]]

    @classmethod
    def of(cls, images: Sequence[NewImage], known: KnownImages, classes: Sequence[str]) -> "_Neighbors":
        hashes, names, old_splits = [], dict[str, str](), dict[str, str]()
        labels: dict[str, str | Targets] = {}
        for number, (split, record) in enumerate(known):
            key = f"{OLD}{number}"
            hashes.append(ImageHash(name=key, sha256=record.sha256 or key, phash=record.phash))
            names[key], old_splits[key] = f"{record.source} ({split})", split
            labels[key] = classes[record.label] if isinstance(record.label, int) else record.label
        for image in images:
            key = NEW + image.labeled.name
            hashes.append(ImageHash(name=key, sha256=image.sha256, phash=image.phash))
            names[key], labels[key] = image.labeled.name, image.class_or_targets
        split_of = {one.name: old_splits.get(one.name, NEW) for one in hashes}
        pairs = [pair for pair in find_near_duplicates(hashes, split_of) if NEW in _splits(pair, split_of)]
        return cls(
            pairs=tuple(pairs),
            names=names,
            labels=labels,
            old_splits=old_splits,
            group_splits=_group_splits(known),
        )

    def splits_of_pair(self, pair: DuplicatePair, splits: Mapping[str, str]) -> set[str]:
        """Return the splits of the two images, given those of the new ones by their names."""
        return {self.old_splits.get(key) or splits[self.names[key]] for key in (pair.first, pair.second)}

    def contradicting(self) -> dict[DuplicatePair, str]:
        """Return the pairs whose labels do not agree, with these."""
        named = [(pair, contradiction(self.labels[pair.first], self.labels[pair.second])) for pair in self.pairs]
        return {pair: labels for pair, labels in named if labels}

    def groups_across(self, images: Iterable[NewImage], splits: Mapping[str, str]) -> list[str]:
        """Return a line for each group of new images that has images in two splits."""
        found: dict[str, dict[str, str]] = {}
        for image in images:
            if image.grouped:
                group, name = image.labeled.group, image.labeled.name
                found.setdefault(group, dict(self.group_splits.get(group, {}))).setdefault(splits[name], name)
        return groups_in_two(found)

    def line(self, pair: DuplicatePair) -> str:
        """Return a pair in words."""
        return str(replace(pair, first=self.names[pair.first], second=self.names[pair.second]))

    def old_splits_near(self) -> dict[str, set[str]]:
        """Return the splits of the old near-duplicates of each new image by its name."""
        found: dict[str, set[str]] = defaultdict(set)
        for pair in self.pairs:
            for key, other in ((pair.first, pair.second), (pair.second, pair.first)):
                if key not in self.old_splits and other in self.old_splits:
                    found[self.names[key]].add(self.old_splits[other])
        return found

    def new_pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of two new images by their names."""
        return [
            (self.names[pair.first], self.names[pair.second])
            for pair in self.pairs
            if not {pair.first, pair.second} & self.old_splits.keys()
        ]


def _split(images: Sequence[NewImage], neighbors: _Neighbors, shares: Shares) -> dict[str, str]:
    """Return the split of each new image. Those that belong together get one split: that of old ones if any.

    An image with a split of its own keeps it.
    """
    own = {image.labeled.name: f"{'group' if image.grouped else 'image'} {image.labeled.group}" for image in images}
    together = merge_groups(own, neighbors.new_pairs())
    near = neighbors.old_splits_near()
    taken: dict[str, set[str]] = defaultdict(set)
    for image in images:
        name = image.labeled.name
        taken[together[name]] |= near.get(name, set()) | ({image.split} if image.split else set())
        if image.grouped:
            taken[together[name]].update(neighbors.group_splits.get(image.labeled.group, ()))
    placed = {group: _first(splits) for group, splits in taken.items() if splits}
    splits = {image.labeled.name: image.split or placed.get(together[image.labeled.name]) for image in images}
    before = {split: Counter(counts) for split, counts in shares.before.items()}
    new = []
    for image in images:
        labeled = replace(image.labeled, group=together[image.labeled.name])
        if split := splits[labeled.name]:
            before.setdefault(split, Counter()).update(labeled.strata)
        else:
            new.append(labeled)
    if new:
        placed |= place_groups(new, parse_shares(shares.text), seed=shares.seed, before=before)
    return {name: split or placed[together[name]] for name, split in splits.items()}


def _first(splits: set[str]) -> str:
    """Return the split that a group with images in several splits is added to: train, so that no evaluation has more
    images that the training has seen.
    """
    return next((split for split in SPLITS if split in splits), min(splits))


def _splits(pair: DuplicatePair, split_of: Mapping[str, str]) -> set[str]:
    return {split_of[pair.first], split_of[pair.second]}
