"""Atomic writes, JSON files and file locks. This module knows nothing about runs."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, TypeAlias

from cluster.access import why_not
from cluster.errors import LockHeld, StorageAway, StorageError

# `.part`, `.PID` and `.PID.THREAD` are drafts of version 0.1.0.
_DRAFT_ENDING = re.compile(r"^\.(part|\d+(\.[0-9a-f]+)?)(\.old)?$")
LOCK_POLL_SECONDS = 0.01
LOCK_SECONDS = 30.0  # to wait for a holder that needs milliseconds, unless it is stopped
# Errors of a file that is missing, or of a folder, a loop of links or a socket in place of it.
_DAMAGES = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
# Errors of a disk, a file server, a network or a machine that failed: the same call may succeed later.
INFRASTRUCTURE_ERRNOS = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOLCK, errno.ENODEV, errno.ENXIO, errno.EBUSY),
        *(errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE),
        *(errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ESHUTDOWN),
        *(errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE),
    }
)
OpenDraft: TypeAlias = Callable[[Path], AbstractContextManager[Path]]  # yields the path of a draft of a file


@dataclass
class _LockWaits:
    seconds_left: float = math.inf


_lock_waits = ContextVar("_lock_waits", default=_LockWaits())  # noqa: B039, of one that never ends
_JSON_TYPES = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}


@contextmanager
def atomic_write(
    target: Path, *, durable: bool = True, mode: int = 0o666, drafts: Path | None = None
) -> Iterator[Path]:
    """Yield the path of a draft; after the block the draft replaces `target`.

    A reader sees the old file or the new one, never part of one. If the block raises, the draft is removed and
    `target` stays as it was. A process that is killed leaves its draft `.NAME.PID.TOKEN`; see `remove_drafts`.

    Args:
        target: The file to write.
        durable: Sync the draft to the disk first. Files that may be lost when the machine crashes save that time.
        mode: Permissions of the file from its first byte on, reduced by the umask.
        drafts: Folder for the draft, on the same file system; by default that of `target`.
    """
    draft = _draft_of(target, drafts)
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield draft
        if durable:
            _sync(draft)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)  # a full disk needs the space of a partial file
        raise


@contextmanager
def atomic_folder(target: Path, *, drafts: Path | None = None, replaced: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder; after the block it is synced and replaces `target`.

    If the block raises, the folder is removed and `target` stays as it was.

    Args:
        target: The folder to write.
        drafts: Folder for the draft, on the same file system; by default that of `target`.
        replaced: Where the folder that is replaced goes until it is deleted; by default beside the draft.
    """
    draft = _draft_of(target, drafts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        for path in (*sorted(draft.iterdir()), draft):
            _sync(path)
        _replace_folder(draft, target, replaced or draft.with_name(f"{draft.name}.old"))
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_drafts(target: Path) -> None:
    """Remove the drafts of `target` that killed processes left. Call it only where nobody else writes `target`."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if _DRAFT_ENDING.search(path.name.removeprefix(f".{target.name}")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write `value` as JSON with `atomic_write`."""
    write_bytes(path, json_bytes(value), durable=durable, mode=mode)


def json_bytes(value: Any) -> bytes:
    """Return the content of a JSON file."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def write_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write `text` as UTF-8 with `atomic_write`."""
    write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, content: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write `content` with `atomic_write`."""
    with atomic_write(path, durable=durable, mode=mode) as draft:
        draft.write_bytes(content)


def copy_atomically(source: Path, target: Path, *, write: OpenDraft = atomic_write) -> None:
    """Copy the content of a file with `atomic_write`, or with another function that opens a draft of `target`.

    Raises:
        StorageError: `target` cannot be written; `source` stays where it is.
    """
    try:
        with write(target) as draft:
            shutil.copyfile(source, draft)
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written ({why_not(error, target)}); the result is in {source}"
        ) from error


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        OSError: It is absent or unreadable.
        StorageError: It is no file: the read of a FIFO could wait for ever, and that of a device never end.
    """
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 -- the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise StorageError(f"{path} cannot be read: it is not a regular file")
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:  # a file server holds a lease on the file, and gives it back to whoever waits
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise
        return os.open(path, flags)


def read_content(path: Path) -> bytes:
    """Return the content of a file; raises what `open_file` raises."""
    with open_file(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        StorageError: The file is absent, unreadable or not JSON.
    """
    try:
        return json.loads(read_content(path).decode())
    except FileNotFoundError as error:
        raise StorageError(f"{path} does not exist") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StorageError(f"{path} cannot be read: it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise StorageError(f"{path} cannot be read: line {error.lineno} is not JSON") from error
    except ValueError as error:  # more digits than Python converts
        raise StorageError(f"{path} cannot be read: it holds a number of thousands of digits") from error
    except RecursionError as error:
        raise StorageError(f"{path} cannot be read: its JSON is nested too deeply") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        StorageError: The file is absent, unreadable, not JSON, or holds another JSON value than an object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise StorageError(f"{path} is damaged: it holds {_JSON_TYPES.get(type(value), 'a number')}, not an object")
    return value


def is_damage(error: StorageError) -> bool:
    """Whether an error of reading a file means that its content is damaged or missing, not that the storage is away."""
    cause = error.__cause__
    if isinstance(error, StorageAway):
        return False
    return not isinstance(cause, OSError) or cause.errno in _DAMAGES


def is_unanswered(error: OSError | StorageError) -> bool:
    """Whether the storage did not answer, so nothing is known; a missing, forbidden or locked file is an answer."""
    if isinstance(error, LockHeld):
        return False
    cause = error if isinstance(error, OSError) else error.__cause__
    known = INFRASTRUCTURE_ERRNOS - _DAMAGES
    return isinstance(error, StorageAway) or (isinstance(cause, OSError) and cause.errno in known)


def read_json_object_or_empty(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file, empty if it is missing, damaged or forbidden.

    Raises:
        StorageError: The storage does not answer, so nothing is known.
    """
    try:
        return read_json_object(path)
    except StorageError as error:
        if is_unanswered(error):
            raise
        return {}


def read_json_object_if_any(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file that keeps a decision; empty if nothing was decided or the file is damaged.

    Raises:
        StorageAway: It cannot be read now; what it says may not be decided anew.
    """
    try:
        return read_json_object(path)
    except StorageError as error:
        if is_damage(error):
            return {}
        raise StorageAway(str(error)) from error


def append_line(path: Path, value: Any) -> None:
    """Append `value` as one line of JSON and sync it.

    If a crash left an incomplete last line, a newline is added to it first.
    """
    line = json.dumps(value, sort_keys=True) + "\n"
    with path.open("ab+") as file:
        if file.tell() and _last_byte(path) != b"\n":
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of a JSON Lines file; lines that are not JSON are skipped, an absent file has none."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                continue


@contextmanager
def locked(path: Path, *, patience: float | None = None) -> Iterator[None]:
    """Hold an exclusive lock (flock) on a file. The kernel releases it when the holder dies; NFS 4 shares it.

    Args:
        path: The lock file.
        patience: Seconds to wait for another holder, which may be stopped, unless `lock_waits_within` has less left;
            None waits without limit of its own.

    Raises:
        LockHeld: Another process keeps the lock.
        StorageError: The file's folder does not exist or is not writable.
    """
    try:
        handle = path.open("a")
    except OSError as error:
        raise StorageError(f"{path} cannot be locked: {why_not(error, path)}") from error
    with handle:
        _lock(handle, path, patience)
        try:
            yield
        finally:
            # Explicitly: a child forked in between shares the open file, so closing it here would not release the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)


@contextmanager
def lock_waits_within(seconds: float) -> Iterator[None]:
    """Within the block, this thread waits at most `seconds` for all locks together; then a held one raises `LockHeld`.

    For work on many files: each of them may be locked by a process that is stopped.
    """
    before = _lock_waits.set(_LockWaits(seconds))
    try:
        yield
    finally:
        _lock_waits.reset(before)


def _lock(handle: IO[str], path: Path, patience: float | None) -> None:
    waits, began = _lock_waits.get(), time.monotonic()
    if patience is None and waits.seconds_left == math.inf:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    # Without the seconds where the block's budget ends the wait: they differ each time, and a fault is logged once.
    own = patience is not None and patience <= waits.seconds_left
    held = f"has held {path} for {patience:g} s" if own and patience else f"holds {path}"
    try:
        _poll_lock(handle, path, began + min(math.inf if patience is None else patience, waits.seconds_left), held)
    finally:
        waits.seconds_left = max(0.0, waits.seconds_left - (time.monotonic() - began))


def _poll_lock(handle: IO[str], path: Path, until: float, held: str) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise LockHeld(
                    f"another process {held}; it may be stopped: find it with `lslocks` or `fuser {path}`, then "
                    "continue or end it"
                ) from error
        time.sleep(LOCK_POLL_SECONDS)


def is_full(error: OSError) -> bool:
    """Return whether an error means that the disk is full or the quota is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal.

    Raises:
        OSError: It cannot be read; the error names it.
    """
    with path.open("rb") as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:  # of a read, it names no file
            raise OSError(error.errno, error.strerror, str(path)) from error


def _draft_of(target: Path, drafts: Path | None = None) -> Path:
    return (drafts or target.parent) / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}"


def _replace_folder(draft: Path, target: Path, old: Path) -> None:
    if target.exists():  # a folder cannot be renamed over one that has files
        target.rename(old)
        try:
            draft.rename(target)
        except OSError:
            with contextlib.suppress(OSError):
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        draft.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
