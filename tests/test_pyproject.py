"""What is built from `pyproject.toml`: the wheel and the source distribution."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from cluster.version import VERSION

ROOT = Path(__file__).parents[1]
BUILT_OF = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "nightshift.py", "nightshift_command.py")
PACKAGES = ("cluster", "data_shards", "jobs", "trainer")
NAME = f"nightshift-{VERSION}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built of a copy: building writes into the source tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in BUILT_OF:
        shutil.copy(ROOT / name, tree)
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    return tree / "dist"


def test_the_wheel_has_every_file_of_the_packages_and_each_package_is_typed(built: Path) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}

    ours = {
        file.relative_to(ROOT).as_posix() for name in PACKAGES for file in (ROOT / name).rglob("*") if file.is_file()
    }
    modules = {"nightshift.py", "nightshift_command.py"}
    assert found == {*(name for name in ours if "__pycache__" not in name), *modules}
    assert {f"{name}/py.typed" for name in PACKAGES} <= found


def test_the_source_distribution_has_what_the_wheel_is_built_of_and_no_tests(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        found = {name.removeprefix(f"{NAME}/").partition("/")[0] for name in archive.getnames()}

    assert found == {NAME, "PKG-INFO", "setup.cfg", "nightshift.egg-info", *BUILT_OF, *PACKAGES}


def test_the_version_is_that_of_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "cluster.version.VERSION"}}


def test_mypy_reads_the_annotations_of_the_python_interface_with_the_setting_of_the_guide(
    built: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "installed")
    setting = re.search(r"```ini\n(\[mypy-nightshift\]\n.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert setting is not None
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n" + setting[1])
    (tmp_path / "user.py").write_text('import nightshift\n\nmodel = nightshift.load("night")\nreveal_type(model)\n')
    python = tmp_path / "python"  # mypy asks this interpreter where packages are
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "installed"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)

    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", python, "user.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert 'Revealed type is "nightshift.Model"' in ended.stdout
    assert ended.returncode == 0


def test_an_installation_for_users_has_the_extras_of_the_image_and_no_tools_of_developers() -> None:
    makefile, image = (ROOT / "Makefile").read_text(), (ROOT / "k8s" / "Dockerfile").read_text()

    extras = re.search(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)

    assert extras is not None
    assert extras[1].split() == re.findall(r"--extra (\w+)", image)
    assert not {"dev", "docs"} & set(extras[1].split())


@pytest.mark.slow
def test_another_torch_replaces_the_locked_one_and_its_cuda_but_nothing_else_of_the_lock(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (tmp_path / "venv" / "bin" / "uv").symlink_to(Path(sys.executable).parent / "uv")
    locked = set(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))

    found = {torch: _installed_by_make(tmp_path / "venv", torch) for torch in ("", "cpu")}

    left_out = found[""].keys() - found["cpu"].keys()
    assert {"torch", "torchvision", "triton"} < left_out
    assert [name for name in left_out if not re.match("torch|triton|nvidia-|cuda-|networkx", name)] == []
    assert found["cpu"].items() <= found[""].items() <= locked


def _installed_by_make(venv: Path, torch: str) -> dict[str, str]:
    """Return the packages, with versions, that the first command of `make install-user` would install."""
    make = ["make", "--dry-run", "install-user", f"VENV={venv}", *([f"TORCH={torch}"] if torch else [])]
    lines = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if "--require-hashes" in line)
    commands = "\n".join([*lines[:first], lines[first].replace("--quiet", "--dry-run")])
    ended = subprocess.run(commands, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(re.findall(r"^ \+ ([\w.-]+)==(\S+)", ended.stderr, re.MULTILINE))
