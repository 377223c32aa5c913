"""Checks of the labels and the kept values of all images that a data set will have."""

from collections import defaultdict
from collections.abc import Sequence

from data_shards.errors import OptionError, SourceError
from data_shards.pack.sources import ImageFolder, SourceImage
from data_shards.targets import ABSENT, PRESENT

FEWEST_IDENTIFYING = 3  # two values never identify the patients of a data set
STATES = {PRESENT: "has", ABSENT: "is known to lack"}


def require_known_targets(images: Sequence[SourceImage], names: Sequence[str]) -> None:
    """Refuse a label that no image has, or that no image is known to lack; in the train split if there is one.

    Raises:
        SourceError: A label cannot be learned from these images.
    """
    learned = [image for image in images if image.split == "train"]
    where = " in train" if learned else ""
    for position, name in enumerate(names):
        known = {image.targets[position] for image in learned or images if image.targets is not None}
        for value, state in STATES.items():
            if value not in known:
                raise SourceError(
                    f"no usable image{where} {state} the label {name!r}; add some, or leave it out with "
                    f"--drop-class {name!r}"
                )


def refuse_identifying_values(folder: ImageFolder) -> None:
    """Refuse a kept column of which almost every group, or image without a group, has a value of its own.

    Raises:
        OptionError: The values would identify patients; the text names none.
    """
    units: defaultdict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for image in folder.images:
        for name, value in image.columns.items():
            if value:
                units[name][value].add(image.group or image.name)
    for name, of_value in units.items():
        stated = len(set().union(*of_value.values()))
        if len(of_value) >= FEWEST_IDENTIFYING and 2 * len(of_value) > stated:
            what = "groups" if any(image.group for image in folder.images) else "images"
            raise OptionError(
                f"--keep-column {name}: {stated:,} {what} have {len(of_value):,} different values, so that a value may "
                "identify a patient; keep a coarser column, or leave it out"
            )
