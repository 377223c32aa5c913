"""The folder of the feature cache: lists its entries and evicts old ones. Imports neither torch nor ray."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from cluster.files import read_json
from cluster.mounts import is_on_network

MARK_SECONDS = 600.0  # between two marks of features in use
IN_USE_SECONDS = 2 * MARK_SECONDS  # after the last mark: features may be in use so long


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """The cached features under one key: backbone, transform and precision.

    Attributes:
        name: Digest of the key, and name of the folder.
        key: What the features depend on.
        shards: Number of files.
        bytes: Size of all files.
        used: When a file was last read or written, in seconds since the Unix epoch.
    """

    name: str
    key: dict[str, Any]
    shards: int
    bytes: int
    used: float


@dataclass(frozen=True)
class _CachedFile:
    path: Path
    used: float
    bytes: int


def cache_folder(storage: Path) -> Path:
    """Return the folder of the feature cache in the storage."""
    return storage / "features"


def cache_entries(root: Path) -> tuple[CacheEntry, ...]:
    """Return the entries of the cache, least recently used first."""
    entries = [_entry(folder) for folder in sorted(root.glob("*/")) if _files(folder)]
    return tuple(sorted(entries, key=lambda entry: entry.used))


def evict(root: Path, limit_bytes: int, *, needed: int = 0) -> int:
    """Remove the least recently used files until `needed` more bytes fit under the limit; return the bytes freed.

    Safe while others read and write: a reader that misses a file computes the features again. One that has mapped a
    file keeps it, except over NFS, where a file that another machine removes is gone, and its reader dies of a bus
    error: there files in use stay, so that less may be freed.
    """
    used_before = time.time() - IN_USE_SECONDS if is_on_network(root) else math.inf
    files = sorted(_all_files(root), key=lambda file: file.used)
    surplus = sum(file.bytes for file in files) + needed - limit_bytes
    freed = 0
    for file in files:
        if freed >= surplus or file.used >= used_before:
            break
        file.path.unlink(missing_ok=True)
        freed += file.bytes
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
        bytes=sum(file.bytes for file in files),
        used=max((file.used for file in files), default=0.0),
    )


def _files(folder: Path) -> list[_CachedFile]:
    """Return the cached shards under one key."""
    found = []
    for path in folder.glob("*.safetensors"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # another process evicted it
        found.append(_CachedFile(path, status.st_mtime, status.st_size))
    return found


def _all_files(root: Path) -> Iterator[_CachedFile]:
    for folder in root.glob("*/"):
        yield from _files(folder)
