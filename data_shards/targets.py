"""Targets of a multi-label data set: for each label whether an image has it, lacks it, or leaves it unknown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

PRESENT, ABSENT, UNKNOWN = 1, 0, -1
VALUES = (PRESENT, ABSENT, UNKNOWN)

Targets: TypeAlias = tuple[int, ...]
Label: TypeAlias = int | Targets  # of one sample: the position of its class, or its targets


class TargetCounts(NamedTuple):
    """Number of images that have one label, that lack it, and of which it is unknown."""

    present: int
    absent: int
    unknown: int


def count_labels(labels: Sequence[Label], classes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the number of samples of each class, and of unknown targets; the latter is empty if no label is a vector.

    All labels are of one kind.
    """
    if isinstance(labels[0], int):
        return tuple(labels.count(c) for c in range(classes)), ()
    vectors = [label for label in labels if not isinstance(label, int)]
    return tuple(_count(vectors, c, PRESENT) for c in range(classes)), tuple(
        _count(vectors, c, UNKNOWN) for c in range(classes)
    )


def _count(vectors: Iterable[Targets], position: int, value: int) -> int:
    return sum(vector[position] == value for vector in vectors)


def positions_of(label: Label) -> frozenset[int]:
    """Return the positions of a sample's class, or of the labels that it has."""
    if isinstance(label, int):
        return frozenset((label,))
    return frozenset(position for position, value in enumerate(label) if value == PRESENT)


def contradiction(first: Label | str, second: Label | str) -> str:
    """Return how the labels of two images contradict each other, "" if they do not.

    A label is a class, by its name or position, or targets; what one of two targets leaves unknown is no contradiction.
    """
    if not isinstance(first, tuple) or not isinstance(second, tuple):
        return f"{first} and {second}" if first != second else ""
    both = zip(first, second, strict=True)
    count = sum(one != other and UNKNOWN not in (one, other) for one, other in both)
    return f"{count} of {len(first)} labels differ" if count else ""


def label_text(label: Label) -> str:
    """Return a label as its member of a shard has it: `3`, or the targets `1 0 -1`."""
    return str(label) if isinstance(label, int) else " ".join(map(str, label))


def parse_targets(text: str, classes: int) -> Targets | None:
    """Return the targets that `label_text` wrote for `classes` labels, None if the text is not such a list."""
    words = text.split(" ")
    known = {str(value): value for value in VALUES}
    if len(words) != classes or not all(word in known for word in words):
        return None
    return tuple(known[word] for word in words)
