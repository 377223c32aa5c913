"""The Jinja environment of every HTML page. Imports nothing heavy: the command line renders a page too."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from trainer.evaluation.metric_text import digits_text, figure_text, share_text

FILTERS: Mapping[str, Callable[..., Any]] = {"figure": figure_text}  # of all pages


def page_environment(*packages: str, filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """Return an environment that escapes HTML and refuses undefined names.

    It is the same for the same arguments, so that a process compiles each template once.

    Args:
        packages: Packages whose folders hold templates, besides `trainer.report`; they come first.
        filters: The page's own filters by name: functions of a module, which live as long as it.

    Raises:
        ValueError: One has the name of a filter of all pages, which shared templates use.
    """
    if taken := FILTERS.keys() & filters.keys():
        raise ValueError(f"all pages have a filter {', '.join(sorted(taken))}; give the page's own another name")
    return _environment(packages, tuple(filters.items()))


@cache
def _environment(packages: tuple[str, ...], filters: tuple[tuple[str, Callable[..., Any]], ...]) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ".") for package in (*packages, "trainer.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {**FILTERS, **dict(filters)}
    return environment


def number_text(value: Any, of: str = "") -> str:
    """Return a value with four digits if it is a float, a dash if there is none. Only 1 itself is shown as 1.

    Args:
        value: Any value.
        of: What it is the value of: for a loss, 1 is a number like any other.
    """
    if isinstance(value, float):
        return digits_text(value, of=of)
    return "–" if value is None else str(value)


def percent_text(value: float | None) -> str:
    """Return a share in percent, a dash if there is none. Only 0 and 1 are shown as 0.0 % and 100.0 %."""
    return "–" if value is None else f"{share_text(value)}\u202f%"


def area_percent(area: float) -> float:
    """Return the place of an AUROC on a scale from 0.5 to 1, in percent; below 0.5 it is at the start."""
    return round(100 * min(1.0, max(0.0, 2 * area - 1)), 2)


def thousands(value: int) -> str:
    """Return a count with a thin space between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def moment_text(text: str | None) -> str:
    """Return a time in UTC, such as 2026-11-27T06:58:25.509Z, as people read it; "" for None."""
    return "" if text is None else text.replace("T", " ")[:19] + " UTC"
