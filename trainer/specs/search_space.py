"""The search space: which options vary, and their bounds. Imports neither torch nor optuna."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

GRID_POINTS = 5  # of a range in a grid search, by default

Value = float | int | str | bool
Config = dict[str, Value]

# Every option that a search space can vary. A trial records all of them, so that a search which extends an earlier one
# may vary other options.
SEARCHED = ("lr", "dropout", "head_width", "weight_decay", "batch_size", "freeze", "augment", "augment_strength")

# Sampled log-uniformly: rates matter by their order of magnitude.
LOGARITHMIC = ("lr", "weight_decay")


class Range(BaseModel):
    """Numbers from `low` to `high`, inclusive.

    Attributes:
        log: Sample log-uniformly.
        points: Number of points in a grid search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    log: bool = False
    points: Annotated[int, Field(ge=2, le=1000)] = GRID_POINTS

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"range {self.low:g}:{self.high:g} is empty or reversed; write the lower bound first")
        if self.log and self.low <= 0:
            raise ValueError(
                f"range {self.low:g}:{self.high:g} is sampled log-uniformly; its lower bound must be above 0"
            )
        return self

    def grid(self) -> tuple[float, ...]:
        """Return `points` evenly spaced numbers, including the bounds."""
        steps = [step / (self.points - 1) for step in range(self.points)]
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            inner = [math.exp(low + (high - low) * step) for step in steps[1:-1]]
        else:
            inner = [self.low + (self.high - self.low) * step for step in steps[1:-1]]
        return (self.low, *inner, self.high)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


Choices = Annotated[tuple[Value, ...], Field(min_length=2)]
Numbers = Annotated[tuple[float, ...], Field(min_length=2)]
Dimension = Range | Choices


class Space(BaseModel):
    """What varies between trials; a None keeps the value of the search's own option."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: Range | Numbers | None = Range(low=1e-5, high=1e-2, log=True)
    dropout: Range | Numbers | None = Range(low=0.0, high=0.6)
    head_width: Annotated[tuple[int, ...], Field(min_length=2)] | None = (128, 256, 512, 1024)
    weight_decay: Range | Numbers | None = None
    batch_size: Annotated[tuple[int, ...], Field(min_length=2)] | None = None
    freeze: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    augment: Annotated[tuple[bool, ...], Field(min_length=2)] | None = None
    augment_strength: Range | Numbers | None = None

    @model_validator(mode="after")
    def _something_varies_once(self) -> Self:
        if not self.dimensions:
            raise ValueError("the space is a single point; give a range such as --lr 1e-5:1e-2")
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, tuple) and len(set(dimension)) < len(dimension):
                raise ValueError(f"{name} names one choice twice: {', '.join(map(str, dimension))}")
        return self

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The varying options by name, in a fixed order."""
        return {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}

    @property
    def grid_size(self) -> int:
        """The number of points of the grid."""
        return math.prod(len(values) for values in self._axes())

    def grid(self) -> Iterator[Config]:
        """Yield the points of the grid; the last option varies fastest."""
        for point in itertools.product(*self._axes()):
            yield dict(zip(self.dimensions, point, strict=True))

    def untried(self, configs: Iterable[Config]) -> list[Config]:
        """Return the points of the grid that are not among `configs`, in the order of the grid."""
        taken = [{name: config.get(name) for name in self.dimensions} for config in configs]
        return [point for point in self.grid() if point not in taken]

    def corners(self) -> Iterator[Config]:
        """Yield configurations that together contain every bound and every choice."""
        ends = [(value.low, value.high) if isinstance(value, Range) else value for value in self.dimensions.values()]
        for place in range(max(map(len, ends))):
            yield {name: axis[min(place, len(axis) - 1)] for name, axis in zip(self.dimensions, ends, strict=True)}

    def __contains__(self, config: object) -> bool:
        return isinstance(config, dict) and all(
            name in config and config[name] in dimension for name, dimension in self.dimensions.items()
        )

    @property
    def grid_axes(self) -> dict[str, tuple[Any, ...]]:
        """The values of each varying option that the grid has, by name."""
        return {name: value.grid() if isinstance(value, Range) else value for name, value in self.dimensions.items()}

    def _axes(self) -> list[tuple[Any, ...]]:
        return list(self.grid_axes.values())


def parse_dimension(name: str, text: str) -> Range | tuple[str, ...] | str:
    """Parse `1e-5:1e-2`, `0:0.6:7` (with the number of grid points), `128,256` or `0.4` for an option.

    A text without colon and comma is a fixed value and is returned as it is.

    Raises:
        ValueError: The text has none of these forms, or the range is empty or reversed.
    """
    if "," in text:
        return tuple(part.strip() for part in text.split(","))
    if ":" not in text:
        return text.strip()
    parts = text.split(":")
    try:
        numbers = [float(part) for part in parts[:2]]
        points = int(parts[2]) if len(parts) == 3 else GRID_POINTS  # noqa: PLR2004 -- low, high, points
    except ValueError as error:
        raise ValueError(f"{name} {text!r} is no range; write it as low:high, or low:high:points for a grid") from error
    if len(parts) > 3:  # noqa: PLR2004
        raise ValueError(f"{name} {text!r} is no range; write it as low:high, or low:high:points for a grid")
    try:
        return Range(low=numbers[0], high=numbers[1], log=name in LOGARITHMIC, points=points)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
