"""A count with its noun, for lines that people read."""

from collections.abc import Mapping


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 image" or "1,200 images"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def counted_by(counts: Mapping[str, int], noun: str) -> str:
    """Return counts by kind with their noun, such as "1 test image" or "1,200 train, 1 test images"."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    return f"{kinds} {noun}" if sum(counts.values()) == 1 else f"{kinds} {noun}s"
