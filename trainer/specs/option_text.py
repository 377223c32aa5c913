"""The options of a run in words, for the terminal, the page and reports."""

from collections.abc import Mapping
from typing import Any

from trainer.specs.search_space import GRID_POINTS


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with each dimension of a search space in place of the fixed value that it replaces."""
    space = options.get("space")
    if not isinstance(space, Mapping):
        return dict(options)
    varying = {name: value for name, value in space.items() if value is not None}
    return {name: value for name, value in options.items() if name != "space"} | varying


def option_text(value: Any) -> str:
    """Return the value of an option in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping) and value.keys() >= {"low", "high"}:  # a range of a search space
        return _range_text(value)
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {option_text(each)}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _range_text(value: Mapping[str, Any]) -> str:
    scale = " on a log scale" if value.get("log") else ""
    points = value.get("points", GRID_POINTS)
    return f"{value['low']} to {value['high']}{scale}" + (f", {points} points" if points != GRID_POINTS else "")
