"""`make sbom`: the bill of materials of what requirements.lock installs."""

import json
import re
from importlib.metadata import version

import pytest

from k8s.make_sbom import LOCK, bill_of_materials, licenses_of, write


def locked(text: str) -> dict[tuple[str, str], set[str]]:
    """Return the hashes of each package and version of a lock file."""
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    parts = (re.match(r"([a-z0-9-]+)(?:\[.*?])?==(\S+)", block) for block in blocks)
    return {
        (part[1], part[2]): set(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
        for part, block in zip(parts, blocks, strict=True)
        if part
    }


def test_the_bill_of_materials_has_each_package_of_the_lock_file_with_version_and_hashes(tmp_path):
    """It is written only if CycloneDX's own strict validator accepts it."""
    wanted = locked(LOCK.read_text())

    write(bill_of_materials(LOCK), tmp_path / "build" / "sbom.json")

    found = json.loads((tmp_path / "build" / "sbom.json").read_text())
    hashes = {
        (one["name"], one["version"]): {
            known["content"] for place in one["externalReferences"] for known in place["hashes"]
        }
        for one in found["components"]
    }
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert hashes == wanted
    assert all(hashes.values())


def test_a_package_that_is_installed_has_the_licenses_that_it_states():
    stated = [licenses_of(name, version(name)) for name in ("click", "optuna", "ray")]
    unknown = licenses_of("click", "0.0.1"), licenses_of("no-such-package", "1.0")

    assert stated == [
        [{"expression": "BSD-3-Clause"}],
        [{"license": {"name": "MIT License"}}],
        [{"license": {"name": "Apache 2.0"}}],
    ]
    assert unknown == ([], [])


def test_what_is_not_valid_is_not_written(tmp_path):
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": [{"name": "torch"}]}

    with pytest.raises(SystemExit, match=r"is not valid CycloneDX 1\.6: 'type' is a required property"):
        write(bill, tmp_path / "sbom.json")

    assert list(tmp_path.iterdir()) == []
