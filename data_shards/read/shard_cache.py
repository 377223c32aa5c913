"""Cache of remote shards on this machine: checked, limited in size, shared by all processes of a user."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import disk_usage

from filelock import FileLock, Timeout

from data_shards.errors import RemoteError
from data_shards.index import Shard
from data_shards.locations import DISK_FULL, download
from data_shards.own_folder import make_own_folder
from data_shards.tar_index import find_byte_fault

GIGABYTES = 10  # default limit of the cache
TRIES = 3
PAUSE_SECONDS = 1.0  # before the second try, doubled before the third; file systems retry by themselves too
ROOM_SECONDS = 600  # to wait for other downloads to end
DISK_SHARE = 0.9  # of the disk space that is free or used by the cache
LIMIT = "NIGHTSHIFT_SHARD_CACHE_GB"
CURE = f"raise {LIMIT}, free the disk, or set TMPDIR to a larger one"

_default = {"limit_bytes": GIGABYTES * 10**9}


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards named by their sha256. The least recently used are evicted to make room for new ones.

    The files of a shard: `SHA.tar`, complete; `SHA.draft`, being downloaded; `SHA.lock`, held during the download;
    `SHA.used`, whose modification time is that of the last use.

    Attributes:
        folder: Folder on a disk of this machine, for one user.
        limit_bytes: Limit of all files together, downloads counted at full size; less if the disk is smaller.
        pause: Function that waits for some seconds.
    """

    folder: Path
    limit_bytes: int = GIGABYTES * 10**9
    pause: Callable[[float], None] = field(default=time.sleep, repr=False)

    def path_of(self, location: str, shard: Shard) -> Path:
        """Return the path of a complete copy of a remote shard, and download it if there is none.

        The copy may be evicted after it was returned; then call again.

        Raises:
            RemoteError: It cannot be downloaded, or is larger than the cache.
            DamagedShard: Every download differs from the index.
        """
        self._ready()
        path, used = self._file(shard.sha256, "tar"), self._file(shard.sha256, "used")
        if _is_whole(path, shard):
            used.touch()  # disks are often mounted without access times
            return path
        with self._locked(shard.sha256):
            if not _is_whole(path, shard):
                self._fetch(location, shard, path)
            used.touch()  # before another process may evict it as least recently used
        return path

    def drop(self, shard: Shard) -> None:
        """Remove a copy that was found damaged."""
        with self._locked(shard.sha256):
            self._file(shard.sha256, "tar").unlink(missing_ok=True)

    def _fetch(self, location: str, shard: Shard, path: Path) -> None:
        draft = self._file(shard.sha256, "draft")
        for number in range(TRIES):
            if number:
                self.pause(PAUSE_SECONDS * 2 ** (number - 1))
            self._make_room(shard, draft)
            try:
                fault = download(location, shard.name, draft) or find_byte_fault(draft, shard)
            except OSError as error:
                draft.unlink(missing_ok=True)
                if error.errno not in DISK_FULL:
                    raise
                raise RemoteError(f"the disk of the cache {self.folder} is full; {CURE}") from error
            if fault is None:
                with self._room():
                    draft.replace(path)
                return
        draft.unlink(missing_ok=True)
        raise RemoteError(f"{location}: {fault}, after {TRIES} tries; check the server and the copy on it")

    def _make_room(self, shard: Shard, draft: Path) -> None:
        """Evict old copies until a shard fits, and reserve its bytes with its draft file."""
        if shard.bytes > self.limit_bytes:
            raise RemoteError(
                f"{shard.name} of {shard.bytes} bytes is larger than the cache's limit of {self.limit_bytes}; {CURE}"
            )
        deadline = time.monotonic() + ROOM_SECONDS
        while not self._claimed(shard, draft):
            if time.monotonic() > deadline:
                raise RemoteError(
                    f"the cache {self.folder} has no room for {shard.name} of {shard.bytes} bytes; {CURE}"
                )
            self.pause(0.2)

    def _claimed(self, shard: Shard, draft: Path) -> bool:
        with self._room():
            draft.unlink(missing_ok=True)
            sizes = {f: _facts(f)[0] for f in self.folder.iterdir() if f.suffix in (".tar", ".draft")}
            room = min(self.limit_bytes, int((sum(sizes.values()) + disk_usage(self.folder).free) * DISK_SHARE))
            excess = sum(sizes.values()) + shard.bytes - room
            for file in sorted(sizes, key=lambda file: _facts(self._file(file.stem, "used"))[1]):
                if excess > 0 and self._removed(file):
                    excess -= sizes[file]
            if excess > 0:
                return False
            with draft.open("wb") as claim:
                claim.truncate(shard.bytes)
            return True

    def _removed(self, file: Path) -> bool:
        """Remove a copy or an abandoned draft, unless a process is downloading it."""
        try:
            with self._locked(file.stem, timeout=0):
                file.unlink(missing_ok=True)
                return True
        except Timeout:
            return False

    def _room(self) -> FileLock:
        """Return the lock for adding, removing and counting files."""
        return FileLock(self.folder / "room.lock")

    def _locked(self, sha256: str, timeout: float = -1) -> FileLock:
        return FileLock(self._file(sha256, "lock"), timeout=timeout)

    def _file(self, sha256: str, suffix: str) -> Path:
        return self.folder / f"{sha256}.{suffix}"

    def _ready(self) -> None:
        if not make_own_folder(self.folder):  # a link may lead to shards of this user, which the cache would evict
            raise RemoteError(
                f"the cache {self.folder} is not a folder of this user; set TMPDIR to a folder of your own"
            )


def limit_default_cache(limit_bytes: int) -> None:
    """Set the limit of the default cache. A process calls this when it reads its settings."""
    _default["limit_bytes"] = limit_bytes


def default_cache() -> ShardCache:
    """Return this user's cache below the machine's folder for temporary files."""
    folder = Path(tempfile.gettempdir()) / f"nightshift-shards-{os.getuid()}"
    return ShardCache(folder, limit_bytes=_default["limit_bytes"])


def _is_whole(path: Path, shard: Shard) -> bool:
    return _facts(path)[0] == shard.bytes


def _facts(path: Path) -> tuple[int, int]:
    """Return a file's size and modification time; zeros if it does not exist."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns
