"""Writes an audit as one HTML page that needs no other file."""

from pathlib import Path

from cluster.files import write_text
from trainer.audit.audit import Audit
from trainer.report.environment import area_percent, page_environment, thousands


def write_page(file: Path, location: str, audit: Audit, classes: tuple[str, ...]) -> None:
    """Write the page atomically.

    Raises:
        OSError: The file cannot be written.
    """
    environment = page_environment("trainer.audit", filters={"thousands": thousands, "area_percent": area_percent})
    page = environment.get_template("audit.html.j2")
    write_text(file, page.render(audit=audit, location=location, classes=classes))
