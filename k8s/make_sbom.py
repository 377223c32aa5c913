"""Write the bill of materials of the Python packages, CycloneDX as JSON: `make sbom`.

`cyclonedx-py` writes what `requirements.lock` has: every package for every platform, with version and hashes. The
licenses are those of the packages that are installed here, as they state them.
"""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
OF_LICENSE = "License :: "  # how such a classifier begins


def bill_of_materials(lock: Path) -> dict[str, Any]:
    """Return the bill of materials of a lock file.

    Raises:
        subprocess.CalledProcessError: The file cannot be read.
    """
    order = [sys.executable, "-m", "cyclonedx_py", "requirements", "--no-validate", "--output-reproducible", str(lock)]
    found: dict[str, Any] = json.loads(subprocess.run(order, check=True, stdout=subprocess.PIPE).stdout)
    for component in found["components"]:
        component.pop("description")  # the lines of the file
        if licenses := licenses_of(component["name"], component["version"]):
            component["licenses"] = licenses
    return found


def licenses_of(name: str, version: str) -> list[dict[str, Any]]:
    """Return the licenses that an installed package states; none if this version is not installed."""
    try:
        stated = metadata(name)
    except PackageNotFoundError:
        return []
    if stated["Version"] != version:
        return []
    if expressions := stated.get_all("License-Expression"):
        return [{"expression": one} for one in expressions]
    classifiers = [one for one in stated.get_all("Classifier") or [] if one.startswith(OF_LICENSE)]
    written = [text.splitlines()[0] for text in stated.get_all("License") or [] if text]
    names = [one.rpartition(" :: ")[2] for one in classifiers] or written
    return [{"license": {"name": one}} for one in names]


def write(bill: dict[str, Any], file: Path) -> None:
    """Write a bill of materials.

    Raises:
        SystemExit: It is not valid CycloneDX; nothing was written.
    """
    text = json.dumps(bill, indent=2) + "\n"
    if fault := JsonStrictValidator(SchemaVersion.from_version(bill["specVersion"])).validate_str(text):
        raise SystemExit(f"the bill of materials is not valid CycloneDX {bill['specVersion']}: {fault.data.message}")
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(bill_of_materials(LOCK), Path(sys.argv[1]))
