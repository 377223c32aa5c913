"""What `nightshift doctor` says of a storage that is small, or that can hold no further file."""

from pathlib import Path

from cluster.health import check_storage
from tests.disks import small_disk


def test_a_small_disk_is_shown_beside_what_a_run_may_need(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=20) as disk:
        found = next(check for check in check_storage(disk.folder) if check.check == "free space")

    assert (found.ok, found.found) == (False, "0.02 GB of 0.02 GB; a run may need 5 GB")
    assert found.cure == (
        "delete runs with `nightshift delete ID`, caches with `nightshift cache prune`, or take a larger disk"
    )


def test_a_full_disk_is_not_said_to_lack_atomic_renames(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=20) as disk:
        disk.fill()
        found = next(check for check in check_storage(disk.folder) if check.check == "rename")

    assert (found.ok, found.found, found.cure) == (False, "not tried: the disk is full", "free some space")


def test_a_storage_without_inodes_is_told_from_one_without_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=20) as disk:
        disk.take_inodes()
        checks = check_storage(disk.folder)

    assert [(check.check, check.ok, check.found, check.cure) for check in checks] == [
        (
            "storage",
            False,
            f"{disk.folder} is not writable: no inode is free in its file system, whatever space it has",
            "delete many small files there, or take a file system with more inodes (`df -i`)",
        )
    ]
