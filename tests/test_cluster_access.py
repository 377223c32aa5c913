"""What a full file system lacks: inodes or space."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.access import has_no_inode


@pytest.mark.parametrize(
    ("inodes", "free_inodes", "free_blocks", "without"),
    [
        (0, 0, 1000, False),  # btrfs counts none
        (1000, 0, 1000, True),
        (1000, 0, 0, False),  # XFS and ZFS: the free blocks are all that an inode could be made of
    ],
)
def test_a_file_system_lacks_inodes_only_if_it_counts_them_and_has_space(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inodes: int, free_inodes: int, free_blocks: int, *, without: bool
) -> None:
    found = SimpleNamespace(f_files=inodes, f_favail=free_inodes, f_bavail=free_blocks)
    monkeypatch.setattr("cluster.access.os", SimpleNamespace(statvfs=lambda _: found))

    answer = has_no_inode(tmp_path / "checkpoint")

    assert answer is without
