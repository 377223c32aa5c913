"""The folder of stored features as a whole: what is in it, and room for more. Imports neither torch nor ray."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from cluster.files import read_json


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """The stored features of one backbone, transform and precision.

    Attributes:
        name: Digest of the key, which is also the folder's name.
        key: What the features depend on.
        shards: Files.
        bytes: Of all files.
        used: Seconds since the epoch when one was last read or written.
    """

    name: str
    key: dict[str, Any]
    shards: int
    bytes: int
    used: float


def cache_folder(storage: Path) -> Path:
    """Return where features are kept below the storage."""
    return storage / "features"


def cache_entries(root: Path) -> tuple[CacheEntry, ...]:
    """Return what the cache holds, the longest unused first."""
    found = [_entry(folder) for folder in sorted(root.glob("*/")) if _files(folder)]
    return tuple(sorted(found, key=lambda entry: entry.used))


def evict(root: Path, limit_bytes: int, *, wanted: int = 0) -> int:
    """Remove the files unused for longest until `wanted` more bytes fit under the limit; return the bytes freed.

    Safe beside readers and writers: who misses a file computes it again.
    """
    files = sorted(_all_files(root), key=lambda item: item[1])
    surplus = sum(size for _, _, size in files) + wanted - limit_bytes
    freed = 0
    for path, _, size in files:
        if freed >= surplus:
            break
        path.unlink(missing_ok=True)
        freed += size
    return freed


def _entry(folder: Path) -> CacheEntry:
    files = _files(folder)
    try:
        key = read_json(folder / "key.json")
    except StorageError:
        key = {}
    return CacheEntry(
        name=folder.name,
        key=key,
        shards=len(files),
        bytes=sum(size for _, _, size in files),
        used=max((used for _, used, _ in files), default=0.0),
    )


def _files(folder: Path) -> list[tuple[Path, float, int]]:
    """Return path, time of last use and bytes of each stored shard of one key."""
    found = []
    for path in folder.glob("*.safetensors"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # another process made room meanwhile
        found.append((path, status.st_mtime, status.st_size))
    return found


def _all_files(root: Path) -> Iterator[tuple[Path, float, int]]:
    for folder in root.glob("*/"):
        yield from _files(folder)
