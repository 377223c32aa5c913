"""The folder of an add in progress, and the moment at which its shards become part of the data set."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data_shards.atomic import write_text_atomic
from data_shards.errors import SourceError
from data_shards.index import ShardIndex, read_index, write_index
from data_shards.pack.work_folder import REFUSALS, WorkFolder

NAME = ".adding"


@dataclass(frozen=True)
class AddFolder(WorkFolder):
    """The folder of an add in progress, below the data set that it adds to."""

    @property
    def folder(self) -> Path:
        """Everything unfinished; it is removed once the index is written."""
        return self.target / NAME

    @property
    def new(self) -> Path:
        """The shards and other files to add, complete but not yet part of the data set."""
        return self.folder / "new"

    @property
    def moved(self) -> Path:
        """The names of the files that are being moved beside the index."""
        return self.folder / "moved.json"

    def remove_leftovers(self) -> None:
        """Remove the files that a killed add has moved beside the index without naming them there."""
        if not self.moved.exists():
            return
        listed = {shard.name for shard in read_index(str(self.target)).shards}
        names = json.loads(self.moved.read_text(encoding="utf-8"))
        if not listed.intersection(names):
            for name in names:
                (self.target / name).unlink(missing_ok=True)
        self.moved.unlink()

    def publish(self, before: ShardIndex, after: ShardIndex, files: Sequence[Path]) -> None:
        """Move the files beside the index, then replace the index: until then nobody reads them.

        Raises:
            SourceError: The data set was changed meanwhile.
        """
        write_text_atomic(self.moved, json.dumps([file.name for file in files]))
        for file in files:
            file.replace(self.target / file.name)
        if read_index(str(self.target)).digest != before.digest:
            self.remove_leftovers()
            raise SourceError(f"{self.target} was changed while images were added to it; add them again")
        write_index(self.target, after)


@contextmanager
def open_add_folder(target: Path) -> Iterator[AddFolder]:
    """Hold the work folder of a data set for one add.

    An add that is refused leaves nothing behind; one that is interrupted leaves its work for the next add.

    Raises:
        SourceError: The data set cannot be written, or another add works on it.
    """
    work = AddFolder(target)
    _make_folders(target, work.folder)
    try:
        with FileLock(work.folder / "lock", timeout=0):
            _make_folders(target, work.shards, work.new)  # not before: another add that ends removes them
            work.remove_leftovers()
            try:
                yield work
            except REFUSALS:
                shutil.rmtree(work.folder, ignore_errors=True)
                raise
            shutil.rmtree(work.folder, ignore_errors=True)  # while the lock is held: another add starts with a new one
    except Timeout as error:
        raise SourceError(f"another add works on {target}; wait for it") from error


def _make_folders(target: Path, *folders: Path) -> None:
    try:
        for folder in folders:
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise SourceError(f"{target} cannot be written ({error.strerror}); check its permissions") from error
