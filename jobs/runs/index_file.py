"""The file of this machine in which a `RunIndex` keeps what it has read, for the next process.

It holds names, notes and reasons of runs, so only its user can read it. It may be deleted at any time: what is absent,
damaged, or written by another version of Nightshift is read from the folders of the runs again.
"""

import contextlib
import gc
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from cluster.errors import StorageError
from cluster.files import locked, read_content, remove_drafts, write_bytes
from cluster.storage_marker import read_storage_id
from jobs.runs.state import RunState

OTHERS = 0o077  # the permissions of everybody but the owner
LAYOUT = 1  # raise it when the layout of the file or the meaning of a field changes
log = logging.getLogger("nightshift.run_index")


class IndexRow(NamedTuple):
    """What the index keeps of a run; a tuple, because a hundred thousand of them are made in a tenth of a second.

    Attributes:
        stamp: Times in ns, size in bytes and inode of the `state.json` that was read.
        state, kind, name, owner, tags, created: By these a list filters.
        content: The whole state, as JSON.
    """

    stamp: list[int]
    state: str
    kind: str
    name: str | None
    owner: str | None
    tags: list[str]
    created: str
    content: str

    @classmethod
    def of(cls, state: RunState, stamp: list[int]) -> "IndexRow":
        """Return the row of a run.

        Args:
            state: Its state.
            stamp: Times, size and inode of its `state.json` before the state was read.
        """
        content = {name: value for name, value in state.to_json().items() if value is not None}
        return cls(
            stamp=stamp,
            state=state.state,
            kind=state.kind,
            name=state.name,
            owner=state.owner,
            tags=list(state.tags),
            created=state.created,
            content=json.dumps(content, separators=(",", ":")),
        )

    def to_state(self) -> RunState:
        """Return the state of the run."""
        return RunState.from_json(json.loads(self.content))


FORMAT = json.dumps([LAYOUT, IndexRow._fields, [field.name for field in fields(RunState)]])


def path_of(storage: Path) -> Path:
    """Return the path of this user's index of a storage, below the machine's folder for temporary files.

    Raises:
        OSError: There is no such folder.
    """
    try:
        storage_id = read_storage_id(storage)
    except (StorageError, OSError):  # the path alone will do: rows are compared with the files
        storage_id = None
    name = hashlib.sha256(f"{storage_id}\n{os.path.realpath(storage)}".encode(errors="surrogateescape")).hexdigest()[
        :16
    ]
    return Path(tempfile.gettempdir()) / f"nightshift-runs-{os.geteuid()}" / f"{name}.index"


def read_rows(storage: Path) -> dict[str, IndexRow]:
    """Return the rows of this user's index of a storage by run id; none if the file is absent, damaged or foreign."""
    try:
        file = path_of(storage)
        _check_private(file.parent)
        digest, _, body = read_content(file).partition(b"\n")
    except FileNotFoundError:
        return {}
    except (OSError, StorageError) as error:
        log.debug("the index of %s cannot be read: %s", storage, error)
        return {}
    if digest != _digest(file, body):
        log.debug("the index %s is damaged or of another version; it is made anew", file)
        return {}
    with _without_garbage_collection():
        cells, *contents = body.decode().split("\n")
        return {
            run_id: IndexRow._make([*row, content])
            for (run_id, *row), content in zip(json.loads(cells), contents, strict=True)
        }


def write_rows(storage: Path, rows: Mapping[str, IndexRow]) -> None:
    """Write this user's index of a storage, unless another process is writing it or it cannot be written."""
    cells = [[run_id, *row[:-1]] for run_id, row in rows.items()]
    lines = [json.dumps(cells, separators=(",", ":")), *(row.content for row in rows.values())]
    body = "\n".join(lines).encode()
    try:
        file = path_of(storage)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        _check_private(file.parent)
        with locked(file.with_suffix(".lock"), patience=0):
            remove_drafts(file)
            write_bytes(file, _digest(file, body) + b"\n" + body, durable=False, mode=0o600)
    except (OSError, StorageError) as error:
        log.debug("the index of %s cannot be written: %s", storage, error)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Collect no garbage inside: the collector would go through all new rows again and again, for half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _digest(file: Path, body: bytes) -> bytes:
    """Return what tells the file of this storage, version and content from any other."""
    found = hashlib.sha256(f"{file.name}\n{FORMAT}\n".encode())
    found.update(body)
    return found.hexdigest().encode()


def _check_private(folder: Path) -> None:
    """Raise StorageError unless a folder is this user's alone: the folder for temporary files is everybody's."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & OTHERS:
        raise StorageError(f"{folder} is not a folder of this user alone")
