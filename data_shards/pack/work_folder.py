"""The folder of a pack in progress, so that an interrupted pack continues."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data_shards.atomic import write_text_atomic
from data_shards.errors import LeakageError, OptionError, SourceError
from data_shards.index import INDEX_NAME
from data_shards.pack.archives import unpack
from data_shards.pack.image_records import remove_records
from data_shards.pack.sources import SourceImage

NAME = ".packing"
REFUSALS = (SourceError, OptionError, LeakageError)  # errors after which the same try would end in the same way


@dataclass(frozen=True)
class WorkFolder:
    """The folder of a pack in progress, below its target folder."""

    target: Path

    @property
    def folder(self) -> Path:
        """Everything unfinished; it is removed once the index is written."""
        return self.target / NAME

    @property
    def encoded(self) -> Path:
        """The chunks of encoded images."""
        return self.folder / "spool"

    @property
    def shards(self) -> Path:
        """A JSON record for each shard that is written."""
        return self.folder / "shards"

    def unpacked(self, archive: Path) -> Path:
        """Return the folder with the content of an archive.

        Raises:
            SourceError: The archive cannot be unpacked safely.
        """
        facts = archive.stat()
        folder = self.folder / f"unpacked-{_digest([facts.st_size, facts.st_mtime_ns, str(archive.resolve())])[:16]}"
        if not folder.exists():
            for interrupted in self.folder.glob(".unpacked-*"):
                shutil.rmtree(interrupted)
            unpack(archive, folder)
        return folder

    def reuse_chunks_of(self, images: Sequence[SourceImage], options: dict[str, Any]) -> None:
        """Keep the chunks of an interrupted pack of the same files, names and options, else remove them."""
        identity = _digest([options, [(image.name, *_facts(image.path)) for image in images]])
        mark = self.folder / "identity"
        if not mark.exists() or mark.read_text() != identity:
            shutil.rmtree(self.encoded, ignore_errors=True)
            self.encoded.mkdir()
            write_text_atomic(mark, identity)

    def discard(self, *, created: Sequence[Path]) -> None:
        """Remove the work folder and the shards of a pack that was refused, and the folders that the pack created."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for shard in (*self.target.glob("*.tar"), *self.target.glob(".*.tar.*")):
            shard.unlink()
        remove_records(self.target)
        for folder in created:
            with suppress(OSError):  # another program has written into it
                folder.rmdir()


def check_target(target: Path) -> None:
    """Refuse a target folder that is not free, or that commands would take for an address.

    Raises:
        OptionError: It has a colon where an address has one.
        SourceError: It is a data set, or holds other files.
    """
    if ":" in "".join(target.parts[:1]):  # http:/..., or a folder whose name reads so
        raise OptionError(
            f"{target} reads like an address; give a folder of this machine (in full, if its name has a colon), and "
            "upload the data set afterwards"
        )
    if (target / INDEX_NAME).exists():
        raise SourceError(f"{target} holds a data set already; give another folder or remove it")
    if target.is_file() or (target.exists() and not WorkFolder(target).folder.exists() and any(target.iterdir())):
        raise SourceError(f"{target} is not empty; give a new folder")


@contextmanager
def open_work_folder(target: Path) -> Iterator[WorkFolder]:
    """Hold the work folder of a target for one pack.

    A pack that is refused leaves nothing behind; one that is interrupted leaves its work for the next try.

    Raises:
        SourceError: The target is not free, or another pack works there.
    """
    check_target(target)
    work = WorkFolder(target)
    created = [target] if work.folder.exists() else [one for one in (target, *target.parents) if not one.exists()]
    work.shards.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.folder / "lock", timeout=0):
            yield work
    except Timeout as error:
        raise SourceError(f"another pack works on {target}; wait for it or give another folder") from error
    except REFUSALS:
        work.discard(created=created)
        raise
    if (target / INDEX_NAME).exists():
        shutil.rmtree(work.folder)


def _facts(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:  # a dangling link: encoding reports it
        return str(path), 0, 0
    return str(path), found.st_size, found.st_mtime_ns


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
