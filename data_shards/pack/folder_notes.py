"""Says so if images that are to be divided lie in folders that may be patients, series or cameras. Pure."""

from collections.abc import Sequence
from typing import Protocol

from data_shards.pack.names import split_of

FEWEST = 10  # folders; a few are rather kinds or parts of the images
IMAGES_A_FOLDER = 1.5  # at least, on average: else there is hardly anything to keep together


class Placed(Protocol):
    """An image in a folder."""

    @property
    def name(self) -> str:
        """Its path below the source."""

    @property
    def split(self) -> str | None:
        """Its split, None if it is to be divided."""


def folder_notes(images: Sequence[Placed], *, depth: int) -> list[str]:
    """Return a note if all images without a split lie in many folders with some images each.

    Args:
        images: The images; they have no groups.
        depth: Number of folders above these folders: 1 below class folders, else 0.
    """
    parts = [image.name.split("/") for image in images if image.split is None]
    folders = {"/".join(one[: depth + 1]) for one in parts if len(one) > depth + 1}
    names = {folder.rpartition("/")[2] for folder in folders}
    if not parts or not all(len(one) > depth + 1 for one in parts) or len(parts) < IMAGES_A_FOLDER * len(folders):
        return []
    if depth and all(map(split_of, names)):
        return [
            f"the folders {' and '.join(sorted(names))} in the class folders are not used: --split divides their "
            "images again"
        ]
    if len(folders) < FEWEST:
        return []
    above = "^" + "[^/]+/" * depth
    return [
        f"--split divides the images of {len(folders):,} folders; if each is a patient, a series or a camera, keep its "
        f"images in one split with --group-by '{above}([^/]+)/'"
    ]
