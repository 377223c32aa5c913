"""Targets of a multi-label data set: for each label whether an image has it, or that this is unknown."""

from typing import TypeAlias

PRESENT, ABSENT, UNKNOWN = 1, 0, -1
VALUES = (PRESENT, ABSENT, UNKNOWN)

Targets: TypeAlias = tuple[int, ...]
