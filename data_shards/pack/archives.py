"""Unpacks a .zip or .tar of images into a folder, and nothing else: an archive is a stranger's file.

Nothing is written but regular files under plain relative names, no more of them and no larger than the limits, counted
as they are unpacked and not as the archive claims.
"""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from data_shards.errors import SourceError

ZIPS = (".zip",)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
COPY_BYTES = 1 << 20
TAIL_BYTES = 64 * COPY_BYTES  # that may follow the end of a tar: it is padded to whole records
EXTENSIONS = (b"x", b"g", b"X", b"L", b"K")  # types of header: pax, its global and Sun's form, GNU's long names
EXTENSION_BYTES = 1 << 20
ENCRYPTED = 0x1  # bit of a zip member's flags
BAD_FORMAT = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
DAMAGE = (*BAD_FORMAT, EOFError, OSError, NotImplementedError, ValueError)


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may hold; a bomb of a few kilobytes can claim terabytes.

    Attributes:
        total_ratio: Unpacked bytes for each byte of the archive; images hardly compress, 16-bit TIFFs some tenfold.
        spare_bytes: Unpacked bytes that are always allowed, whatever the ratio.
    """

    files: int = 5_000_000
    file_bytes: int = 1 << 30
    total_ratio: int = 200
    spare_bytes: int = 100_000_000


@dataclass(frozen=True)
class _Member:
    name: str
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether a path names an archive that can be unpacked."""
    return path.is_file() and path.name.lower().endswith(ZIPS + TARS)


def unpack(archive: Path, target: Path, limits: ArchiveLimits | None = None) -> None:
    """Unpack an archive into the folder `target`, which appears whole or not at all.

    Raises:
        SourceError: The archive is damaged or encrypted, leaves its folder, holds a link or device, names a file
            twice, or exceeds the limits.
    """
    draft = target.with_name(target.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        with _members(archive) as members:
            _write_all(members, draft, archive, limits or ArchiveLimits())
    except DAMAGE as error:
        raise SourceError(f"{archive} cannot be unpacked: {error}") from error
    draft.replace(target)


def _write_all(members: Iterator[_Member], folder: Path, archive: Path, limits: ArchiveLimits) -> None:
    allowed = archive.stat().st_size * limits.total_ratio + limits.spare_bytes
    for number, member in enumerate(members, 1):
        if number > limits.files:
            raise SourceError(f"{archive} holds more than {limits.files} files; unpack it yourself if you trust it")
        path = folder / _safe_name(member.name, archive)
        path.parent.mkdir(parents=True, exist_ok=True)
        allowed -= _write(member, path, archive, min(limits.file_bytes, allowed))


def _write(member: _Member, path: Path, archive: Path, allowed: int) -> int:
    written = 0
    with member.open() as source, path.open("xb") as file:
        while data := source.read(COPY_BYTES):
            written += len(data)
            if written > allowed:
                raise SourceError(
                    f"{archive}: {member.name!r} unpacks beyond {allowed} bytes; unpack it yourself if you trust it"
                )
            file.write(data)
    return written


def _safe_name(name: str, archive: Path) -> Path:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise SourceError(f"{archive}: {name!r} would be written outside its folder; do not trust this archive")
    return Path(*parts)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    if archive.name.lower().endswith(ZIPS):
        with zipfile.ZipFile(archive) as opened:
            yield _of_zip(opened, archive)
    else:
        with tarfile.open(archive, tarinfo=_Header) as tar:
            yield _of_tar(tar, archive)


def _of_zip(opened: zipfile.ZipFile, archive: Path) -> Iterator[_Member]:
    for info in opened.infolist():
        if info.is_dir():
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise SourceError(f"{archive}: {info.filename!r} is a link or device; pack the files themselves")
        if info.flag_bits & ENCRYPTED:
            raise SourceError(f"{archive}: {info.filename!r} is encrypted; unpack it yourself")
        yield _Member(info.filename, lambda info=info: opened.open(info))  # type: ignore[misc]


class _Header(tarfile.TarInfo):
    """A tar's header; those that extend the next one are read into memory whole, so that a stranger's stay small."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENSIONS and self.size > EXTENSION_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes; unpack it yourself if you trust it")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


def _of_tar(tar: tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    for info in tar:
        if info.isdir():
            continue
        if not info.isreg():
            raise SourceError(f"{archive}: {info.name!r} is a link or device; pack the files themselves")
        yield _Member(info.name, lambda info=info: cast(IO[bytes], tar.extractfile(info)))  # type: ignore[misc]
    _check_tar_end(tar, archive)


def _check_tar_end(tar: tarfile.TarFile, archive: Path) -> None:
    """Refuse a tar that ends without its two blocks of zeros: tarfile takes a cut between members for the end."""
    file = cast(IO[bytes], tar.fileobj)
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise SourceError(f"{archive} ends in the middle or has a damaged header; copy it again")
    for _ in range(TAIL_BYTES // COPY_BYTES):  # a compressed stream is checked against its sum at its very end
        data = file.read(COPY_BYTES)
        if not data:
            return
        if any(data):
            break
    raise SourceError(f"{archive} has data behind its end, so files may be missing; copy it again, or pack it anew")
