"""Writes an audit as one HTML page that needs no other file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.files import write_text
from trainer.audit.audit import Audit
from trainer.report.environment import area_percent, page_environment, thousands

if TYPE_CHECKING:
    from trainer.audit.beside_model import ModelMinusCheck  # it imports torch, which a page does not need


@dataclass(frozen=True, kw_only=True)
class JudgedBesideAudit:
    """An evaluated model beside the audit of its data set.

    Attributes:
        split: Split that it was evaluated on.
        classes: Its classes.
        differences: What its AUROC is above that of each check, by the name of the check.
    """

    split: str
    classes: tuple[str, ...]
    differences: "Mapping[str, ModelMinusCheck]"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        differences = {name: dict(vars(one)) for name, one in self.differences.items()}
        return {"split": self.split, "classes": list(self.classes), "differences": differences}


def write_page(
    file: Path, location: str, audit: Audit, classes: tuple[str, ...], beside: JudgedBesideAudit | None = None
) -> None:
    """Write the page atomically.

    Raises:
        OSError: The file cannot be written.
    """
    environment = page_environment("trainer.audit", filters={"thousands": thousands, "area_percent": area_percent})
    page = environment.get_template("audit.html.j2")
    write_text(file, page.render(audit=audit, location=location, classes=classes, beside=beside))
