import errno
import os
from pathlib import Path

import pytest

from cluster import health, mounts
from cluster.access import why_not
from cluster.mounts import mount_of

TABLE = """\
27 1 8:1 / / rw,relatime - ext4 /dev/root rw
40 27 0:44 / /storage rw,relatime - nfs4 server:/export rw,vers=4.2,local_lock=none,proto=tcp
41 27 0:45 / /old rw,relatime - nfs server:/export rw,vers=3,nolock,proto=tcp
42 27 0:46 / /half rw,relatime - nfs4 server:/export rw,vers=4.1,local_lock=flock
43 27 0:47 / /with\\040space rw,relatime shared:1 - ceph 10.0.0.1:6789:/ rw,acl
44 40 0:48 / /storage/scratch rw,relatime - tmpfs tmpfs rw
45 27 0:49 / /new rw,relatime - nfs4 server:/export rw,vers=4.2,nolock
"""


@pytest.mark.parametrize(
    ("folder", "kind", "local_lock"),
    [
        ("/", "ext4", None),
        ("/storagebox", "ext4", None),
        ("/storage/runs", "nfs4", None),
        ("/storage/scratch/x", "tmpfs", None),
        ("/old/runs", "nfs", "nolock"),
        ("/half", "nfs4", "local_lock=flock"),
        ("/with space/runs", "ceph", None),
        ("/new", "nfs4", None),  # nolock has no effect in NFS 4
    ],
)
def test_the_mount_of_a_folder_says_whether_its_locks_stay_on_this_machine(folder, kind, local_lock):
    mount = mount_of(Path(folder), TABLE)

    assert mount is not None
    assert (mount.type, mount.local_lock) == (kind, local_lock)


@pytest.mark.parametrize("table", ["", "garbage\n", "27 1 8:1 / / rw - ext4\n"])
def test_a_table_that_does_not_name_the_mount_is_no_fault(table):
    assert mount_of(Path("/storage"), table) is None


@pytest.mark.parametrize(
    ("folder", "ok", "found"),
    [
        ("/old", False, "work on this machine only: the storage is mounted with nolock"),
        ("/half", False, "work on this machine only: the storage is mounted with local_lock=flock"),
        ("/storage", True, "work on this machine; the mount (nfs4) shares them"),
        ("/", True, "work"),
    ],
)
def test_doctor_says_that_locks_do_not_reach_other_machines(tmp_path, monkeypatch, folder, ok, found):
    monkeypatch.setattr(health, "mount_of", lambda _: mount_of(Path(folder), TABLE))

    locks = next(result for result in health.check_storage(tmp_path) if result.check == "locks")

    assert (locks.ok, locks.found) == (ok, found)
    assert (locks.cure is None) == ok


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("kind", "cure"), [("nfs4", "chown 65534"), ("ext4", "chmod -R g+rwX")])
def test_the_cure_of_an_export_that_belongs_to_root_is_its_owner_on_the_file_server(tmp_path, monkeypatch, kind, cure):
    storage = tmp_path / "storage"
    storage.mkdir()
    for folder in (storage, *storage.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    monkeypatch.setattr(mounts, "MOUNT_TABLE", tmp_path / "mountinfo")
    mounts.MOUNT_TABLE.write_text(f"1 1 0:1 / {tmp_path} rw - {kind} server:/export rw\n")

    os.seteuid(65534)
    try:
        checks = health.check_storage(storage)
    finally:
        os.seteuid(0)

    assert [(check.check, check.ok) for check in checks] == [("storage", False)]
    assert "belongs to user root" in checks[0].found
    assert cure in str(checks[0].cure)
    assert ("another NIGHTSHIFT_STORAGE does not help" in str(checks[0].cure)) == (kind == "nfs4")


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (
            errno.EROFS,
            "Read-only file system; mount it writable or repair its server, then restart what mounts it; "
            "or correct NIGHTSHIFT_STORAGE",
        ),
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.ENOTDIR, "Not a directory; set NIGHTSHIFT_STORAGE"),
    ],
)
def test_a_storage_that_cannot_be_written_has_the_cure_of_its_error(number: int, cure: str, tmp_path: Path):
    assert why_not(OSError(number, os.strerror(number)), tmp_path, "set NIGHTSHIFT_STORAGE") == cure
