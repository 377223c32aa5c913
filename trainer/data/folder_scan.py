"""Scans a folder for the files that `predict` reads: every file once, through links too, without system files."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_shards.pack.names import is_ignored
from data_shards.pixels import is_dicomdir


@dataclass(frozen=True, kw_only=True)
class FolderScan:
    """The files below a folder.

    Attributes:
        paths: Path of every file in order of name; of a folder that cannot be listed, its own path.
        ignored: Number of hidden files, files of the operating system, such as `Thumbs.db`, and DICOMDIR files; not in
            `paths`.
    """

    paths: tuple[str, ...]
    ignored: int


def scan_folder(root: Path) -> FolderScan:
    """Return the files below a folder.

    Every folder is scanned once, so that links which form a cycle end. A folder below `root` that a link points to is
    scanned under its own path: links come after all other folders. Opens no file.
    """
    paths: list[str] = []
    ignored = 0
    visited: set[tuple[int, int]] = set()
    folders, links = deque([str(root)]), deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        try:
            entries = list(_entries_once(folder, visited))
        except OSError:
            paths.append(folder)  # reading it gives the reason
            continue
        for entry in entries:
            if is_ignored(entry.name) or is_dicomdir(entry.name):
                ignored += _file_count(entry)
            elif _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            else:
                paths.append(entry.path)
    return FolderScan(paths=tuple(sorted(paths)), ignored=ignored)


def _entries_once(folder: str, visited: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder in order of name; none if it was visited before."""
    facts = os.stat(folder)  # noqa: PTH116 -- a Path for each of a million folders costs a gigabyte
    if (identity := (facts.st_dev, facts.st_ino)) in visited:
        return
    visited.add(identity)
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file_count(entry: os.DirEntry[str]) -> int:
    """Return 1 for a file, and the number of files below a folder."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(names) for _, _, names in os.walk(entry.path))
