"""Receives a file from an address into a draft: resumed after a cut connection, retried, and limited in size."""

import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from data_shards.atomic import write_text_atomic
from data_shards.errors import DownloadFailed

TRIES = 5  # in a row without progress
PROGRESS_BYTES = 1_000_000  # less than this between two faults is no progress
PAUSE_SECONDS = 1.0  # before the second try, doubled before each further one
START_BYTES = 1024  # of the file, which show what it is
GIGABYTE = 10**9

OnBytes = Callable[[int, int | None], None]  # bytes received and bytes in all, None if the server does not say


class Interrupted(Exception):
    """The transfer stopped, and another try may help. The text says why.

    Attributes:
        wait_seconds: How long the server asks to wait.
    """

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A file that is being sent.

    Attributes:
        start: Offset of the first byte: the one that was asked for, or 0.
        total: Size of the whole file in bytes, None if unknown.
        version: Names this content of the file at the address; None if a later request cannot ask for the same.
        gzipped: Whether the server compressed the file for the way.
        chunks: The bytes; closing it closes the connection. Raises `Interrupted`.
    """

    start: int
    total: int | None
    version: str | None
    chunks: Generator[bytes, None, None]
    gzipped: bool = False


class RemoteFile(Protocol):
    """A file at an address."""

    @property
    def shown(self) -> str:
        """The address without credentials."""

    def open(self, offset: int, version: str | None) -> Transfer:
        """Ask for the bytes from `offset` on if the file still has this version, else for all of them.

        Raises:
            DownloadFailed: It cannot be downloaded, and another try does not help.
            Interrupted: Another try may help.
        """


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """How to receive a file.

    Attributes:
        max_bytes: Largest file; what the server announces and what it sends are compared with it.
        limit_cure: What to do about a larger one.
        check_start: Looks at the first bytes of the file and raises an error if it is of no use.
        on_bytes: Called with the bytes received.
        pause: Function that waits for some seconds.
    """

    max_bytes: int
    limit_cure: str = "raise the limit"
    check_start: Callable[[bytes], None] = lambda _: None
    on_bytes: OnBytes = lambda *_: None
    pause: Callable[[float], None] = field(default=time.sleep, repr=False)


class FileFacts(BaseModel, frozen=True):
    """What the server says of a file; see `Transfer`."""

    version: str | None = None
    total: int | None = None
    gzipped: bool = False


@dataclass(frozen=True)
class Draft:
    """A file that is not complete yet, and a file beside it that says of which version it is."""

    path: Path

    @property
    def _facts_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def facts(self) -> FileFacts:
        """Return what is known of the file; nothing if the draft cannot be continued."""
        try:
            return FileFacts.model_validate_json(self._facts_path.read_bytes())
        except (OSError, ValueError):
            return FileFacts()

    def begin(self, transfer: Transfer) -> None:
        """Prepare for the bytes of a transfer."""
        if transfer.start == 0:
            self.discard()
        facts = FileFacts(version=transfer.version, total=transfer.total, gzipped=transfer.gzipped)
        write_text_atomic(self._facts_path, facts.model_dump_json())

    def forget(self) -> None:
        """Remove what is known of the file, so that the next download starts at its beginning."""
        self._facts_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)
        self.forget()


def receive(remote: RemoteFile, draft: Draft, options: TransferOptions) -> FileFacts:
    """Download a file into a draft, or the rest of it, and return what the server says of it.

    Raises:
        DownloadFailed: It cannot be downloaded. What arrived stays in the draft if a later call can continue it.
        OSError: The disk is full; the draft was removed.
    """
    tries, furthest = 0, draft.size
    while True:
        try:
            _receive_once(remote, draft, options)
            return draft.facts()
        except Interrupted as fault:
            tries = 1 if draft.size >= furthest + PROGRESS_BYTES else tries + 1
            furthest = max(furthest, draft.size)
            if tries >= TRIES:
                raise DownloadFailed(remote.shown, f"{fault}, in {tries} tries in a row", _later(draft)) from fault
            options.pause(max(fault.wait_seconds, PAUSE_SECONDS * 2 ** (tries - 1)))
        except OSError:
            draft.discard()  # a full disk needs the space
            raise


def require_allowed_size(shown: str, total: int | None, options: TransferOptions) -> None:
    """Refuse a file that is larger than the limit.

    Raises:
        DownloadFailed: It is.
    """
    if total is not None and total > options.max_bytes:
        size, limit = f"{total / GIGABYTE:.3g} GB", f"{options.max_bytes / GIGABYTE:.3g} GB"
        raise DownloadFailed(shown, f"it has {size}, more than the limit of {limit}", options.limit_cure)


def _receive_once(remote: RemoteFile, draft: Draft, options: TransferOptions) -> None:
    facts = draft.facts()
    offset = draft.size if facts.version else 0
    transfer = remote.open(offset, facts.version if offset else None)
    try:
        require_allowed_size(remote.shown, transfer.total, options)
        _require_space(remote, draft, transfer)
        draft.begin(transfer)
        _write(remote, draft, transfer, options)
    finally:
        transfer.chunks.close()


def _write(remote: RemoteFile, draft: Draft, transfer: Transfer, options: TransferOptions) -> None:
    done, first = transfer.start, b""
    options.on_bytes(done, transfer.total)
    with draft.path.open("ab") as file:
        for chunk in transfer.chunks:
            if done < START_BYTES and transfer.start == 0 and not transfer.gzipped:
                first = (first + chunk)[:START_BYTES]
                _check_start(first, draft, options)
            done += len(chunk)
            if done > options.max_bytes:
                draft.discard()
                require_allowed_size(remote.shown, done, options)
            file.write(chunk)
            options.on_bytes(done, transfer.total)
    if transfer.total is not None and done < transfer.total:
        raise Interrupted(f"the connection ended after {done} of {transfer.total} bytes")


def _check_start(first: bytes, draft: Draft, options: TransferOptions) -> None:
    try:
        options.check_start(first)
    except DownloadFailed:
        draft.discard()
        raise


def _require_space(remote: RemoteFile, draft: Draft, transfer: Transfer) -> None:
    needed = (transfer.total or 0) - transfer.start
    free = shutil.disk_usage(draft.path.parent).free + (draft.size if transfer.start == 0 else 0)
    if needed > free:
        reason = f"{needed / GIGABYTE:.3g} GB are to come and {draft.path.parent} has {free / GIGABYTE:.3g} GB free"
        raise DownloadFailed(remote.shown, reason, "free some space, or set NIGHTSHIFT_STORAGE to a larger disk")


def _later(draft: Draft) -> str:
    if draft.size and draft.facts().version:
        return f"run the same command again later: it continues after {draft.size} bytes"
    return "check the server and the network, and run the same command again"
