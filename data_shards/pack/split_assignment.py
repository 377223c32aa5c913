"""Assigns each image to a split, and checks that no image or group leaks from one split into another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_shards.errors import LeakageError, SourceError
from data_shards.pack.chunks import ChunkEntry
from data_shards.pack.near_duplicates import DuplicatePair, ImageHash, across_splits, find_near_duplicates
from data_shards.pack.options import PackOptions
from data_shards.pack.sources import SourceImage
from data_shards.pack.split import (
    LabeledImage,
    Stratum,
    groups_in_two,
    merge_groups,
    parse_shares,
    stratified_group_split,
)
from data_shards.targets import UNKNOWN, contradiction

SHOWN = 3  # findings in an error; it carries all of them


@dataclass(frozen=True, kw_only=True)
class SplitAssignment:
    """The split of each image.

    Attributes:
        splits: Split of each image by its name.
        groups: Group of each image by its name; empty without `group_by`.
        duplicates: Lines that connect identical or nearly identical images of one split, whose labels agree.
        contradictions: Lines that connect such images whose labels do not agree.
        leakage: A line for each such pair, and each group, in two splits; empty unless that was allowed.
    """

    splits: dict[str, str]
    groups: dict[str, str]
    duplicates: tuple[str, ...]
    contradictions: tuple[str, ...]
    leakage: tuple[str, ...]


def assign_splits(
    images: Sequence[SourceImage], good: Sequence[ChunkEntry], options: PackOptions, label_names: Sequence[str] = ()
) -> SplitAssignment:
    """Return the split of each usable image.

    `options.split` divides the images that have no split yet. Of these, near-duplicates stay together like a group. In
    a multi-label data set `label_names` are the names of the labels, in the order of the images' targets.

    Raises:
        SourceError: The images cannot be grouped or split as requested.
        LeakageError: The splits of the source share an image or a group.
    """
    usable = {entry.name for entry in good}
    images = [image for image in images if image.name in usable]
    groups = groups_of_images(images)
    hashes = [ImageHash(name=e.name, sha256=e.sha256, phash=e.phash) for e in good]
    given = _given_splits(images)
    pairs = find_near_duplicates(hashes, given if len(given) == len(images) else None)
    splits = given | _split_rest(images, groups, pairs, options, label_names)
    if len(given) < len(images) and across_splits(pairs, splits):
        pairs = find_near_duplicates(hashes, splits)  # also those that meet another split
    leaking = set(across_splits(pairs, splits))
    contradicting = _contradicting(pairs, images)
    leakage = (*_groups_across(groups, splits), *sorted(map(str, leaking)))
    if leakage and not options.allow_leakage:
        raise _leaking(leakage)
    return SplitAssignment(
        splits=splits,
        groups=groups,
        duplicates=tuple(str(pair) for pair in pairs if pair not in leaking and pair not in contradicting),
        contradictions=tuple(f"{pair}: {labels}" for pair, labels in contradicting.items()),
        leakage=leakage,
    )


def check_assignable(images: Sequence[SourceImage], options: PackOptions, label_names: Sequence[str] = ()) -> None:
    """Refuse options that cannot be met even if every image is usable and no two are duplicates.

    Raises:
        SourceError: The images cannot be grouped or split as requested.
    """
    groups = groups_of_images(images)
    splits = _given_splits(images) | _split_rest(images, groups, (), options, label_names)
    leakage = _groups_across(groups, splits)
    if leakage and not options.allow_leakage:
        raise _leaking(leakage)


def _given_splits(images: Sequence[SourceImage]) -> dict[str, str]:
    return {image.name: image.split for image in images if image.split is not None}


def groups_of_images(images: Sequence[SourceImage]) -> dict[str, str]:
    """Return the group of each image by its name; empty without groups."""
    return {image.name: image.group for image in images if image.group is not None}


def _leaking(leakage: Sequence[str]) -> LeakageError:
    what = "1 image or group is" if len(leakage) == 1 else f"{len(leakage)} images or groups are"
    return LeakageError(
        f"{what} in two splits, such as {'; '.join(leakage[:SHOWN])}; move them into one, or use --allow-leakage",
        tuple(leakage),
    )


def _split_rest(
    images: Sequence[SourceImage],
    groups: Mapping[str, str],
    pairs: Sequence[DuplicatePair],
    options: PackOptions,
    label_names: Sequence[str],
) -> dict[str, str]:
    """Return the splits of the images that have none yet.

    Near-duplicates are divided too where leakage is allowed and they cannot stay together.
    """
    images = [image for image in images if image.split is None]
    if not images:
        return {}
    own = {image.name: f"group {groups[image.name]}" if groups else f"image {image.name}" for image in images}
    shares = parse_shares(options.split or "")

    def divided(group_of: Mapping[str, str]) -> dict[str, str]:
        labeled = [
            LabeledImage(
                name=image.name,
                label=image.label,
                group=group_of[image.name],
                targets=known_targets(image, label_names),
            )
            for image in images
        ]
        return stratified_group_split(labeled, shares, seed=options.seed)

    copies = [(pair.first, pair.second) for pair in pairs if pair.first in own and pair.second in own]
    try:
        return divided(merge_groups(own, copies))
    except SourceError as error:
        if not copies:
            raise
        apart = divided(own)  # or why even this cannot be
        if options.allow_leakage:
            return apart
        raise SourceError(
            f"{str(error).partition('; ')[0]}, as near-duplicates stay in one split; leave some of them out, or divide "
            "them too with --allow-leakage, which makes metrics too optimistic"
        ) from error


def _contradicting(pairs: Sequence[DuplicatePair], images: Sequence[SourceImage]) -> dict[DuplicatePair, str]:
    """Return the pairs whose labels do not agree, with these."""
    label_of = {image.name: image.class_or_targets for image in images}
    named = [(pair, contradiction(label_of[pair.first], label_of[pair.second])) for pair in pairs]
    return {pair: labels for pair, labels in named if labels}


def known_targets(image: SourceImage, label_names: Sequence[str]) -> tuple[Stratum, ...] | None:
    """Return each known label and whether the image has it; None if the data set has one class per image."""
    if image.targets is None:
        return None
    return tuple((n, value) for n, value in zip(label_names, image.targets, strict=True) if value != UNKNOWN)


def _groups_across(groups: Mapping[str, str], splits: Mapping[str, str]) -> list[str]:
    found: dict[str, dict[str, str]] = {}
    for name, group in groups.items():
        found.setdefault(group, {}).setdefault(splits[name], name)
    return groups_in_two(found)
