"""Files that appear whole or not at all. Knows nothing of runs."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import StorageError


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` so that a reader sees the old file or the new one, never half of one.

    What need not outlive a crash of the machine, and is written often, saves the wait for the disk.
    """
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode(), durable=durable)


def write_text(path: Path, text: str) -> None:
    """Write `text` aside, sync it and rename it into place."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` aside, sync it unless told otherwise, and rename it into place; what fails leaves nothing."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)  # half a file on a full disk is room that somebody needs
        raise


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file so that a reader of `target` sees the old one or the new one, never half of one.

    Raises:
        StorageError: The target cannot be written; the source stays where it is.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with source.open("rb") as content, draft.open("wb") as file:
            shutil.copyfileobj(content, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror}); the result is in {source}") from error
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        StorageError: The file is absent, unreadable or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error


def append_line(path: Path, value: Any) -> None:
    """Append `value` as one line of JSON and sync it; a line torn by an earlier crash is ended first."""
    line = json.dumps(value, sort_keys=True) + "\n"
    with path.open("ab+") as file:
        if file.tell() and _last_byte(path) != b"\n":
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of a file of JSON lines; a line torn by a crash is passed over, an absent file is empty."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; the kernel gives it back when its holder dies, and NFS keeps it between machines.

    Raises:
        StorageError: The file's folder does not exist or is not writable.
    """
    try:
        handle = path.open("a")
    except OSError as error:
        raise StorageError(f"{path} cannot be locked: {error.strerror}") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # By hand: a child forked meanwhile shares the open file, and closing ours alone would keep the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)


def is_full(error: OSError) -> bool:
    """Whether an error says that the storage, or our share of it, has no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
