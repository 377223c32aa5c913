"""The version of Nightshift, also in a source tree that is not installed."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cluster.version import VERSION

ROOT = Path(__file__).parents[1]


@pytest.fixture
def not_installed(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a Python that has every package of this one but Nightshift."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "nightshift" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    return {**os.environ, "PYTHONPATH": str(packages), "NIGHTSHIFT_STORAGE": str(tmp_path / "storage")}


def test_a_source_tree_that_is_not_installed_has_a_version(not_installed: dict[str, str]) -> None:
    command = [sys.executable, "-S", "-m", "jobs"]

    asked = "import importlib.metadata as m; print([d.name for d in m.distributions() if d.name == 'nightshift'])"
    installed = subprocess.check_output([*command[:2], "-P", "-c", asked], env=not_installed, text=True)
    version = subprocess.check_output([*command, "--version"], cwd=ROOT, env=not_installed, text=True)
    doctor = subprocess.run(
        [*command, "doctor", "--json"], cwd=ROOT, env=not_installed, capture_output=True, text=True, check=False
    )

    assert installed == "[]\n"
    assert version == f"nightshift, version {VERSION}\n"
    assert "Traceback" not in doctor.stderr
    (versions,) = (check for check in json.loads(doctor.stdout) if check["check"] == "versions")
    assert versions["found"] == f"{VERSION} here"


def test_no_module_asks_an_installation_for_the_version() -> None:
    files = [file for name in ("cluster", "data_shards", "jobs", "trainer") for file in (ROOT / name).rglob("*.py")]

    asking = [
        file.name
        for file in (*files, ROOT / "nightshift.py")
        if "version('nightshift')" in file.read_text().replace('"', "'")
    ]

    assert asking == []
