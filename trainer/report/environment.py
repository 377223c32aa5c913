"""The Jinja environment of every HTML page. Imports nothing heavy: the command line renders a page too."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def page_environment(*packages: str, filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """Return an environment that escapes HTML and refuses undefined names.

    Args:
        packages: Packages whose folders hold templates, besides `trainer.report`; they come first.
        filters: The page's own filters by name.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ".") for package in (*packages, "trainer.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment


def number_text(value: Any) -> str:
    """Return a value with four digits if it is a float, a dash if there is none."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
