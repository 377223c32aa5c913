"""Columns of a label table that a data set keeps for each image, such as sex or site, for metrics by subgroup."""

import re
from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

NOT_STATED = "not stated"  # what texts call the images without a value; they store ""
MOST_VALUES = 20  # of a column; a table of more subgroups says nothing, and more values may identify patients
NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)?")
YEARS = re.compile(r"([0-9]{1,3})Y")  # an age as DICOM writes it (VR AS)


class KeptColumn(BaseModel):
    """A column whose values are stored with the images.

    Attributes:
        name: Name of the column in the label table.
        bounds: Bounds of the bands that its numbers are cut into, in rising order; empty: the cells are the values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    bounds: tuple[FiniteFloat, ...] = ()

    @model_validator(mode="after")
    def _bounds_rise(self) -> Self:
        if any(first >= second for first, second in pairwise(self.bounds)):
            raise ValueError("the bounds of bands do not rise")
        return self

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands in rising order, such as `below 40`, `40 to below 65`, `65 or more`."""
        if not self.bounds:
            return ()
        texts = [f"{bound:.15g}" for bound in self.bounds]
        between = (f"{low} to below {high}" for low, high in pairwise(texts))
        return (f"below {texts[0]}", *between, f"{texts[-1]} or more")

    def band_of(self, number: float) -> str:
        """Return the name of the band that a number is in; a bound belongs to the band above it."""
        return self.bands[bisect_right(self.bounds, number)]

    def in_order(self, values: Iterable[str]) -> list[str]:
        """Return the distinct values: bands and numbers as they rise, texts by name, images without a value last."""
        bands = {band: position for position, band in enumerate(self.bands)}

        def place(value: str) -> tuple[bool, float, str]:
            number = number_in(value)
            return not value, bands.get(value, float("inf") if number is None else number), value

        return sorted(set(values), key=place)

    def __str__(self) -> str:
        """Return the column as `--keep-column` takes it."""
        return self.name + ("=" + ",".join(f"{bound:.15g}" for bound in self.bounds) if self.bounds else "")


def number_in(cell: str) -> float | None:
    """Return the number in a cell, with a decimal point or comma, or an age such as 061Y; None if it is no number."""
    years = YEARS.fullmatch(cell)
    if years:
        return float(years[1])
    return float(cell.replace(",", ".")) if NUMBER.fullmatch(cell) else None
