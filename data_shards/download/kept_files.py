"""Files downloaded once and kept in the storage: STORAGE/downloads/KEY/.

The files of an address: `NAME.zip` or `NAME.tar`, or the folder `files` of a Kaggle data set; `kept.json`, written
last, whose modification time is that of the last use; `draft`, being downloaded. `KEY.lock` stays.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, Field

from data_shards.atomic import write_text_atomic
from data_shards.download.address import Address
from data_shards.download.archive_kind import archive_ending, refuse_web_page, undo_gzip
from data_shards.download.bucket_file import BucketFile
from data_shards.download.http_file import HttpFile
from data_shards.download.services import download_from_drive, download_from_kaggle
from data_shards.download.transfer import GIGABYTE, Draft, OnBytes, RemoteFile, TransferOptions, receive
from data_shards.errors import DownloadFailed

MAX_BYTES = 100 * GIGABYTE
NOTED_BYTES = 2 * GIGABYTE  # takes seconds to read, on network storage a minute
LIMIT_CURE = "raise --max-download"
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """How to download.

    Attributes:
        folder: The folder of all downloads.
        sha256: What the sha256 of the file has to be, in hexadecimal.
        max_bytes: Largest file.
        refresh: Download again what is kept already.
        allow_http: Follow a redirect from https to http.
        on_bytes: Called with the bytes received and the bytes in all.
        on_note: Called with a line for the user.
        pause: Function that waits for some seconds.
    """

    folder: Path
    sha256: str | None = None
    max_bytes: int = MAX_BYTES
    refresh: bool = False
    allow_http: bool = False
    on_bytes: OnBytes = lambda *_: None
    on_note: Callable[[str], None] = lambda _: None
    pause: Callable[[float], None] = field(default=time.sleep, repr=False)


class KeptFile(BaseModel, frozen=True):
    """What is kept of an address.

    Attributes:
        address: The address without credentials; "" of a download that never ended.
        name: Name of the file or folder.
        bytes: Its size; that of the draft if the download has not ended.
        sha256: Of the file; None of a folder and a draft.
        fetched: When the download ended, in RFC 3339; None if it has not.
    """

    address: str = ""
    name: str = Field(default="draft", pattern=r"^[A-Za-z0-9._-]+$")
    bytes: int = 0
    sha256: str | None = None
    fetched: str | None = None


@dataclass(frozen=True)
class _Entry:
    """The folder of one address."""

    folder: Path

    @property
    def facts_path(self) -> Path:
        return self.folder / "kept.json"

    @property
    def draft(self) -> Draft:
        return Draft(self.folder / "draft")

    def kept(self) -> KeptFile | None:
        """Return what is kept, None if nothing is complete."""
        try:
            kept = KeptFile.model_validate_json(self.facts_path.read_bytes())
            path = self.folder / kept.name
            return kept if path.is_dir() or (path.is_file() and path.stat().st_size == kept.bytes) else None
        except (OSError, ValueError):
            return None

    def used(self) -> float | None:
        """Return when it was last used, in seconds since the Unix epoch; None if it was removed meanwhile."""
        for path in (self.facts_path, self.folder):
            with suppress(FileNotFoundError):
                return path.stat().st_mtime
        return None

    @contextmanager
    def lock(self, on_wait: Callable[[], None]) -> Iterator[Callable[[int], None]]:
        """Yield what takes the lock of the address, LOCK_SH or LOCK_EX, in place of what was held before.

        Between the two nothing is held: what was looked at before may have changed.
        """
        with self.folder.with_name(f"{self.folder.name}.lock").open("a+") as file:  # LOCK_SH on NFS needs reading

            def take(operation: int) -> None:
                fcntl.flock(file, fcntl.LOCK_UN)  # NFS would keep LOCK_SH: two that ask for LOCK_EX wait for each other
                try:
                    fcntl.flock(file, operation | fcntl.LOCK_NB)
                except BlockingIOError:
                    on_wait()
                    fcntl.flock(file, operation)

            yield take


@contextmanager
def kept_file(address: Address, options: DownloadOptions) -> Iterator[Path]:
    """Give the file of an address, and download it if it is not kept yet. Nobody removes it inside the block.

    Raises:
        DownloadFailed: It cannot be downloaded, is no archive, or has another sha256.
        OSError: The storage is full or not writable.
    """
    entry = _Entry(options.folder / address.key)
    options.folder.mkdir(parents=True, exist_ok=True)
    with entry.lock(lambda: options.on_note(f"waiting for another command that uses {address}")) as take_lock:
        kept = _take(address, entry, options, take_lock)
        os.utime(entry.facts_path)
        yield entry.folder / kept.name


def kept_files(folder: Path) -> tuple[tuple[KeptFile, float], ...]:
    """Return what is kept and when it was last used, in seconds since the Unix epoch; least recently used first.

    No lock is taken: what another command removes meanwhile is left out.
    """
    entries = [_Entry(path) for path in folder.glob("*/")]
    found = [(entry.kept() or KeptFile(bytes=_bytes_below(entry.folder)), entry.used()) for entry in entries]
    return tuple(sorted(((kept, used) for kept, used in found if used is not None), key=lambda one: one[1]))


def prune_kept_files(folder: Path, unused_seconds: float) -> int:
    """Remove what was not used for some time and is not in use; return the bytes freed."""
    freed = 0
    for path in sorted(folder.glob("*/")):
        entry = _Entry(path)
        with path.with_name(f"{path.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            used = entry.used()
            if used is not None and time.time() - used >= unused_seconds:
                freed += _bytes_below(path)
                entry.facts_path.unlink(missing_ok=True)  # first: what is half removed is not kept
                shutil.rmtree(path)
    return freed


def _take(address: Address, entry: _Entry, options: DownloadOptions, take_lock: Callable[[int], None]) -> KeptFile:
    """Return what is kept, downloaded and checked if need be, with a lock that others share.

    The lock is held alone for a download only: commands that read the same file do not wait for each other.
    """
    refresh, downloaded = options.refresh, None
    while True:
        take_lock(fcntl.LOCK_SH)
        kept = None if refresh else entry.kept()
        if kept is not None:
            if kept != downloaded:  # else it has been checked
                _reuse(address, entry.folder / kept.name, kept, options)
            return kept
        take_lock(fcntl.LOCK_EX)
        if refresh or entry.kept() is None:  # else another command has downloaded it meanwhile
            downloaded, refresh = _download(address, entry, options), False


def _reuse(address: Address, path: Path, kept: KeptFile, options: DownloadOptions) -> None:
    options.on_note(f"using the copy of {address} from {kept.fetched}; --refresh downloads it again")
    if options.sha256 and kept.sha256 is not None:
        _require_sha256(address, _sha256_of(path, options), options.sha256)


def _download(address: Address, entry: _Entry, options: DownloadOptions) -> KeptFile:
    new = not entry.folder.exists()
    entry.folder.mkdir(exist_ok=True)
    try:
        name, size, sha256 = _fetch(address, entry, options)
    except DownloadFailed:
        if not entry.draft.size:
            entry.draft.forget()
        if new and not _bytes_below(entry.folder):  # gdown's draft has another name
            shutil.rmtree(entry.folder)
        raise
    fetched = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    kept = KeptFile(address=str(address), name=name, bytes=size, sha256=sha256, fetched=fetched)
    write_text_atomic(entry.facts_path, kept.model_dump_json() + "\n")
    return kept


def _fetch(address: Address, entry: _Entry, options: DownloadOptions) -> tuple[str, int, str | None]:
    """Download, check, and put the file into place; return its name, size and sha256."""
    if address.kind == "kaggle":
        download_from_kaggle(address.url, str(address), entry.folder / "draft")
        return "files", _put(entry.folder / "draft", entry, "files"), None
    transfer = TransferOptions(
        max_bytes=options.max_bytes,
        limit_cure=LIMIT_CURE,
        check_start=lambda start: refuse_web_page(str(address), start),
        on_bytes=options.on_bytes,
        pause=options.pause,
    )
    draft = entry.draft
    if address.kind == "drive":
        download_from_drive(address.url, str(address), draft.path, transfer)
    elif receive(_remote(address, options), draft, transfer).gzipped:
        _undo_gzip(address, draft, options)
    try:
        ending = archive_ending(draft.path, str(address))
        sha256 = _sha256_of(draft.path, options)
        if options.sha256:
            _require_sha256(address, sha256, options.sha256)
    except DownloadFailed:
        draft.discard()
        raise
    name = _name_of(address, ending)
    size = _put(draft.path, entry, name)
    draft.discard()
    return name, size, sha256


def _remote(address: Address, options: DownloadOptions) -> RemoteFile:
    if address.kind == "bucket":
        return BucketFile(address.url)
    followed: set[str] = set()

    def on_redirect(shown: str) -> None:
        if shown not in followed:
            followed.add(shown)
            options.on_note(f"{address} redirects to {shown}")

    return HttpFile(url=address.url, allow_http=options.allow_http, on_redirect=on_redirect)


def _undo_gzip(address: Address, draft: Draft, options: DownloadOptions) -> None:
    try:
        # What replaces the draft is not what the server sends: nothing can be appended to it.
        undo_gzip(draft.path, address.file_name, options.max_bytes, before_replace=draft.forget)
    except ValueError as error:
        draft.discard()
        raise DownloadFailed(address, str(error), "check the server and --max-download") from error


def _put(source: Path, entry: _Entry, name: str) -> int:
    """Move a complete file or folder to its name in place of an older one; return its size."""
    entry.facts_path.unlink(missing_ok=True)
    target = entry.folder / name
    for old in entry.folder.iterdir():
        if old != source:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    source.rename(target)
    return _bytes_below(target) if target.is_dir() else target.stat().st_size


def _name_of(address: Address, ending: str) -> str:
    """Return a name with the ending that fits the content, whatever the address says."""
    name = address.file_name
    own = next((one for one in ENDINGS if name.lower().endswith(one)), "")
    return name if own and (own == ".zip") == (ending == ".zip") else f"{name}{ending}"


def _require_sha256(address: Address, found: str, wanted: str) -> None:
    if found != wanted.lower():
        reason = f"its sha256 is {found} and not {wanted.lower()}"
        cure = "check --sha256 and the address; --refresh downloads a kept file again"
        raise DownloadFailed(address, reason, cure)


def _sha256_of(path: Path, options: DownloadOptions) -> str:
    size = path.stat().st_size
    if size >= NOTED_BYTES:
        options.on_note(f"computing the sha256 of {size / GIGABYTE:.1f} GB")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes_below(folder: Path) -> int:
    """Return the bytes of the files in a folder, without those that another command removes meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(place, name).stat().st_size
    return size
