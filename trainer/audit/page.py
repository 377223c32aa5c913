"""Writes an audit as one HTML page that needs no other file."""

from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from cluster.files import write_text
from trainer.audit.audit import Audit


def write_page(file: Path, location: str, audit: Audit, classes: tuple[str, ...]) -> None:
    """Write the page atomically.

    Raises:
        OSError: The file cannot be written.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("trainer.audit", "."), PackageLoader("trainer.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda count: f"{count:,}".replace(",", "\u202f")
    page = environment.get_template("audit.html.j2")
    write_text(file, page.render(audit=audit, location=location, classes=classes, areas=area_percent))


def area_percent(area: float) -> float:
    """Return the place of an AUROC on a scale from 0.5 to 1, in percent; below 0.5 it is at the start."""
    return round(100 * min(1.0, max(0.0, 2 * area - 1)), 2)
