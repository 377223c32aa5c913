"""Says so if images that are to be divided lie in folders, or have names, that may be those of patients. Pure."""

import re
from collections.abc import Sequence
from typing import Protocol

from data_shards.pack.names import split_of

FEWEST = 10  # folders; a few are rather kinds or parts of the images
IMAGES_A_FOLDER = 1.5  # at least, on average: else there is hardly anything to keep together
# What names of one patient, series or place may have in common, as the first group.
NAMES = {
    "in left and right": re.compile(r"(?i)([^/]+)[ _-](?:left|right|l|r|od|os)\.[^/.]+$"),
    "in their last number": re.compile(r"([^/0-9]*[0-9][^/]*[^0-9/])[0-9]+[^0-9/]*$"),
}


class Placed(Protocol):
    """An image in a folder."""

    @property
    def name(self) -> str:
        """Its path below the source."""

    @property
    def label(self) -> str:
        """Its class; "" in a multi-label data set."""

    @property
    def split(self) -> str | None:
        """Its split, None if it is to be divided."""


def folder_notes(images: Sequence[Placed], *, depth: int) -> list[str]:
    """Return a note if all images without a split lie in many folders, or have names, that may be those of patients.

    Args:
        images: The images; they have no groups.
        depth: Number of folders above the first ones that may be patients: 1 below class folders, else 0.
    """
    divided = [image for image in images if image.split is None]
    parts = [image.name.split("/") for image in divided]
    levels = range(depth, min(map(len, parts), default=0) - 1)  # of folders that all images are in
    if depth and levels and all(split_of(one[depth]) for one in parts):
        names = sorted({one[depth] for one in parts})
        return [
            f"the folders {' and '.join(names)} in the class folders are not used: --split divides their images again"
        ]
    for level in levels:
        folders = {tuple(one[: level + 1]) for one in parts}
        above = {folder[:-1] for folder in folders}
        if FEWEST <= len(folders) <= len(parts) / IMAGES_A_FOLDER and len(folders) > len(above):
            return [
                f"--split divides the images of {len(folders):,} folders; if each is a patient, a series or a camera, "
                f"keep its images in one split with --group-by '{'^' + '[^/]+/' * level}([^/]+)/'"
            ]
    return _name_notes(divided)


def _name_notes(images: Sequence[Placed]) -> list[str]:
    """Return a note if the names of images say which ones are of one patient, series or place."""
    classes = len({image.label for image in images})
    for difference, pattern in NAMES.items():
        groups = _groups(images, pattern, most=int(len(images) / IMAGES_A_FOLDER))
        if len(groups) >= max(FEWEST, 2 * classes):
            return [
                f"--split divides images whose names differ only {difference} ({len(groups):,} such names); if those "
                f"are of one patient, series or place, keep them in one split with --group-by '{pattern.pattern}'"
            ]
    return []


def _groups(images: Sequence[Placed], pattern: re.Pattern[str], *, most: int) -> set[str]:
    """Return the groups in the names of images; none if a name has none, or if there are too many."""
    groups = set[str]()
    for image in images:
        match = pattern.search(image.name)
        if match is None:
            return set()
        groups.add(match[1])
        if len(groups) > most:
            return set()
    return groups
