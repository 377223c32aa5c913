"""Checks that each label of a multi-label data set can be learned and evaluated."""

from collections.abc import Sequence

from data_shards.errors import SourceError
from data_shards.pack.sources import SourceImage
from data_shards.targets import ABSENT, PRESENT

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
