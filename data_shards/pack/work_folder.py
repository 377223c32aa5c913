"""The folder in which a pack works until its index stands: what was begun, so that a second try goes on."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data_shards.atomic import write_whole
from data_shards.errors import SourceError
from data_shards.index import INDEX_NAME
from data_shards.pack.archives import is_archive, unpack
from data_shards.pack.sources import SourceImage

NAME = ".packing"


@dataclass(frozen=True)
class WorkFolder:
    """The workshop below a target folder."""

    target: Path

    @property
    def folder(self) -> Path:
        """Everything unfinished; it goes when the index stands."""
        return self.target / NAME

    @property
    def encoded(self) -> Path:
        """The encoded images."""
        return self.folder / "spool"

    @property
    def shards(self) -> Path:
        """A JSON per shard that is written."""
        return self.folder / "shards"

    def folder_of(self, source: Path) -> Path:
        """Return the folder to pack: the source itself, or what is in it if it is an archive.

        Raises:
            SourceError: The archive cannot be unpacked safely.
        """
        if not is_archive(source):
            return source
        facts = source.stat()
        unpacked = self.folder / f"unpacked-{_digest([facts.st_size, facts.st_mtime_ns, str(source.resolve())])[:16]}"
        if not unpacked.exists():
            unpack(source, unpacked)
        return unpacked

    def reuse_chunks_of(self, images: Sequence[SourceImage], options: dict[str, Any]) -> None:
        """Keep the encoded images of an earlier try if it had the same files and options, else begin anew."""
        identity = _digest([options, [_facts(image.path) for image in images]])
        mark = self.folder / "identity"
        if not mark.exists() or mark.read_text() != identity:
            shutil.rmtree(self.encoded, ignore_errors=True)
            self.encoded.mkdir()
            write_whole(mark, identity)


@contextmanager
def open_work_folder(target: Path) -> Iterator[WorkFolder]:
    """Hold the workshop of a target folder for one pack; an error leaves it for the next try.

    Raises:
        SourceError: The target is a data set, holds other files, or another pack works there.
    """
    work = WorkFolder(target)
    if (target / INDEX_NAME).exists():
        raise SourceError(f"{target} holds a data set already; give another folder or remove it")
    if target.is_file() or (target.exists() and not work.folder.exists() and any(target.iterdir())):
        raise SourceError(f"{target} is not empty; give a new folder")
    work.shards.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.folder / "lock", timeout=0):
            yield work
    except Timeout as error:
        raise SourceError(f"another pack works on {target}; wait for it or give another folder") from error
    if (target / INDEX_NAME).exists():
        shutil.rmtree(work.folder)


def _facts(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:  # a link to nowhere: encoding will report it
        return str(path), 0, 0
    return str(path), found.st_size, found.st_mtime_ns


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
