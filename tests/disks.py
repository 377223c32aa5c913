"""A real disk of a few megabytes that tests can fill, if this process may mount file systems."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BLOCK = b"\0" * 4096  # the size that the kernel allocates at a time


@dataclass(frozen=True)
class SmallDisk:
    """A mounted disk.

    Attributes:
        folder: The mount point.
    """

    folder: Path

    def fill(self) -> None:
        """Use all free blocks."""
        with contextlib.suppress(OSError), self._filling.open("ab", buffering=0) as file:
            while file.write(BLOCK):
                pass

    def free(self) -> None:
        """Free the blocks that `fill` used."""
        self._filling.unlink()

    def grow(self, megabytes: int) -> None:
        """Make the disk larger, as an administrator would."""
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", self.folder], check=True)

    def take_inodes(self) -> None:
        """Leave no inode for another file, whatever space is free."""
        found = os.statvfs(self.folder)
        subprocess.run(["mount", "-o", f"remount,nr_inodes={found.f_files - found.f_ffree}", self.folder], check=True)

    def make_read_only(self) -> None:
        """Refuse writes from now on, as a file server does after a fault."""
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    @property
    def _filling(self) -> Path:
        return self.folder / "filling"


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount an empty disk at `folder`; skip the test if that is not permitted."""
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
