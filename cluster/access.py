"""Files of a storage that several users share: who may read and write them, and what an error of permissions means."""

import contextlib
import errno
import grp
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from cluster.mounts import is_on_network

OTHERS = 0o007  # the permissions of everybody but a file's owner and group
TEAM_UMASK = "007"
CURES = {  # of faults that another folder of the same storage has, too
    errno.EROFS: "mount it writable or repair its server, then restart what mounts it; or correct NIGHTSHIFT_STORAGE",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.ESTALE: "restart what mounts it: the server has another file system now",
    errno.EIO: "repair its disk or its server",
}
NO_INODE = "no inode is free in its file system, whatever space it has"
INODE_CURE = "delete many small files there, or take a file system with more inodes (`df -i`)"


def restrict_umask(setting: int | None) -> None:
    """Set the umask of this process and of those that it starts.

    Args:
        setting: The umask; None means that of the process, without any permission for other users than a file's owner
            and group: runs, tables and shards can hold data of patients.
    """
    os.umask(os.umask(OTHERS) | OTHERS if setting is None else setting)


@contextlib.contextmanager
def restricted_umask(setting: int | None) -> Iterator[None]:
    """Restrict the umask as `restrict_umask` does, for a while: the process belongs to somebody else's program."""
    before = os.umask(OTHERS)
    os.umask(before)
    restrict_umask(setting)
    try:
        yield
    finally:
        os.umask(before)


def why_not(error: OSError, path: Path, cure: str = "") -> str:
    """Return why an operation on a file or folder of the storage failed.

    Args:
        error: Its error.
        path: The file or folder.
        cure: What to do unless the error has a cure of its own; "" names none.
    """
    if error.errno in (errno.EACCES, errno.EPERM):
        return denial(path)
    if error.errno == errno.ENOSPC and has_no_inode(path):
        return f"{NO_INODE}; {INODE_CURE}"
    return f"{error.strerror}; {CURES.get(error.errno or 0, cure)}" if cure else str(error.strerror)


def has_no_inode(path: Path) -> bool:
    """Whether the file system of a path, or of the folder that it is to be in, can hold no further file."""
    place = next((folder for folder in (path, *path.parents) if _exists(folder)), path)
    try:
        found = os.statvfs(place)
    except OSError:  # of a share whose server is gone
        return False
    # btrfs counts no inodes; XFS and ZFS make them of free blocks, so that a disk full of bytes has none either.
    return found.f_files > 0 and found.f_favail == 0 and found.f_bavail > 0


def unreadable(error: OSError, place: str) -> str:
    """Return the line for a person's own file that cannot be read; `place` is named where `error` names no file."""
    named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else place
    why = error.strerror or type(error).__name__
    return f"{named} cannot be read ({why}); check the path, its permissions and its disk"


def denial(path: Path) -> str:
    """Return why this user may not write `path`: the owner and permissions of what denies it, and the cure."""
    place = _denying(path)
    try:
        found = place.stat()
    except OSError:
        return (
            f"permission denied; let the owner of {place.parent} allow it, or set NIGHTSHIFT_STORAGE to your own folder"
        )
    owner, group = user_name(found.st_uid), group_name(found.st_gid)
    folder = place if place.is_dir() else place.parent
    what = f"{place} belongs to user {owner} and group {group} with mode {found.st_mode & 0o7777:o}"
    me = user_name(os.geteuid())
    if found.st_uid == 0 and is_on_network(place):  # an export of root; Kubernetes applies no fsGroup to it
        cure = f"change its owner on the file server (`chown {os.geteuid()}`); another NIGHTSHIFT_STORAGE does not help"
        return f"{what}, and user {me} may not write there; {cure}"
    if found.st_uid == os.geteuid():
        return f"{what}, and {me} may not write there; allow it with `chmod u+rwX {folder}`"
    if found.st_gid in (os.getegid(), *os.getgroups()):
        cure = f"let {owner} run `chmod -R g+rwX {folder}` and set NIGHTSHIFT_UMASK={TEAM_UMASK} for all users"
    else:
        cure = (
            f"let {owner} give it to a group of all users (`chgrp -R GROUP {folder}`, `chmod -R g+rwXs {folder}`) and "
            f"set NIGHTSHIFT_UMASK={TEAM_UMASK} for all"
        )
    return f"{what}, and user {me} may not write there; {cure}, or set NIGHTSHIFT_STORAGE to a folder of your own"


def is_writable(path: Path) -> bool:
    """Whether this user may read and write a file, or list a folder and make files in it."""
    return os.access(path, os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0))


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where the system knows no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the name of a group, or the number where the system knows no name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _denying(path: Path) -> Path:
    """Return what denies access to `path`: the first folder that may not be entered, else the file or its folder."""
    for folder in reversed(path.parents):
        if not os.access(folder, os.X_OK) and _exists(folder):
            return folder
    if _exists(path) and not is_writable(path):
        return path
    return next((folder for folder in path.parents if _exists(folder)), path.parent)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True
