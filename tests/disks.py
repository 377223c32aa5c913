"""A disk of a few megabytes that really fills up, where this process may mount one."""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BLOCK = b"\0" * 4096  # what the kernel gives out at a time


@dataclass(frozen=True)
class SmallDisk:
    """A mounted disk.

    Attributes:
        folder: Where it is mounted.
    """

    folder: Path

    def fill(self) -> None:
        """Leave no block free."""
        with contextlib.suppress(OSError), self._filling.open("ab", buffering=0) as file:
            while file.write(BLOCK):
                pass

    def free(self) -> None:
        """Give back what `fill` took."""
        self._filling.unlink()

    def grow(self, megabytes: int) -> None:
        """Make the disk larger, as an administrator would."""
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", self.folder], check=True)

    @property
    def _filling(self) -> Path:
        return self.folder / "filling"


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount an empty disk at `folder`; the test is skipped where that is not allowed."""
    folder.mkdir()
    order = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(order, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount program to make a small disk with")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
