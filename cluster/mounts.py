"""How the storage is mounted: whether its locks reach other machines."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOUNT_TABLE = Path("/proc/self/mountinfo")
LOCAL_TYPES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay")
NETWORK_TYPES = ("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.ceph", "lustre", "glusterfs", "fuse.glusterfs")


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A mounted file system.

    Attributes:
        type: Type of the file system, such as nfs4.
        options: Mount options, those of the file system included.
    """

    type: str
    options: tuple[str, ...]

    @property
    def is_network(self) -> bool:
        """Whether other machines can mount it too."""
        return self.type in NETWORK_TYPES

    @property
    def is_local(self) -> bool:
        """Whether the times of files are those of this machine's clock, and a change is seen at once."""
        return self.type in LOCAL_TYPES

    @property
    def local_lock(self) -> str | None:
        """The option that keeps flock within this machine; None if there is none (nfs(5))."""
        if self.type not in ("nfs", "nfs4"):
            return None
        local = [o for o in self.options if o in ("local_lock=all", "local_lock=flock")]
        nolock = ["nolock"] if self.type == "nfs" and "nolock" in self.options else []
        return next(iter([*nolock, *local]), None)


def mount_of(folder: Path, table: str | None = None) -> Mount | None:
    """Return the mount that a folder is in; None if the table of mounts cannot be read.

    Args:
        folder: An absolute path.
        table: Content of /proc/self/mountinfo (proc_pid_mountinfo(5)); None reads it.
    """
    try:
        lines = (MOUNT_TABLE.read_text(encoding="utf-8", errors="replace") if table is None else table).splitlines()
    except OSError:
        return None
    found, depth = None, -1
    place = Path(os.path.realpath(folder))  # `resolve` raises RuntimeError on a loop of links
    for line in lines:
        before, dash, after = line.partition(" - ")
        words, rest = before.split(), after.split()
        if not dash or len(words) < 6 or len(rest) < 3:  # noqa: PLR2004 - the fields that every line has
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), words[4]))
        if place.is_relative_to(point) and len(point.parts) >= depth:  # a later mount covers an earlier one
            options = (*words[5].split(","), *rest[2].split(","))
            found, depth = Mount(type=rest[0], options=options), len(point.parts)
    return found


def is_on_network(folder: Path) -> bool:
    """Whether a folder is in a file system of the network."""
    mount = mount_of(folder)
    return mount is not None and mount.is_network
