"""Unpacks a .zip or .tar of images into a folder. The archive is not trusted.

Only regular files with plain relative names are written. Their number and size are limited, and counted while they are
unpacked: what the archive claims does not matter.
"""

import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from data_shards.atomic import atomic_path
from data_shards.errors import SourceError
from data_shards.locations import DISK_FULL

ZIPS = (".zip",)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
COPY_BYTES = 1 << 20
TAIL_BYTES = 64 * COPY_BYTES  # of padding that may follow the end of a tar
EXTENSIONS = (b"x", b"g", b"X", b"L", b"K")  # header types: pax, global pax, Sun's pax, GNU long name and link
EXTENSION_BYTES = 1 << 20
NAME_BYTES = 255  # of one part of a path, on all common disks
DRIVE = re.compile("[A-Za-z]:")  # of Windows
SHOWN = 40  # characters of a long name in an error
ENCRYPTED = 0x1  # bit of a zip member's flags
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses others without any limit of memory
UTF_8 = 0x800  # bit of a zip member's flags: its name is UTF-8
UNIX, MACOS = 3, 19  # systems that write a file name's bytes into a zip as they are; others write code page 437
BAD_FORMAT = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
DAMAGE = (*BAD_FORMAT, EOFError, OSError, NotImplementedError, ValueError)


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """Limits of an archive's content: a zip bomb of a few kilobytes can unpack to terabytes.

    Attributes:
        files: Maximum number of files.
        file_bytes: Maximum unpacked size of one file.
        total_ratio: Maximum unpacked bytes per byte of the archive. Images hardly compress, 16-bit TIFFs about tenfold.
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
    """Unpack an archive into the folder `target`, which appears complete or not at all.

    Raises:
        SourceError: The archive is damaged or encrypted, names a file outside its folder or twice, holds a link or
            device, or exceeds the limits.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        try:
            with _members(archive) as members:
                _write_all(members, temporary, archive, limits or ArchiveLimits())
        except DAMAGE as error:
            raise SourceError(f"{archive} cannot be unpacked: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return fault and cure. The libraries' own texts speak of their internals."""
    number = error.errno if isinstance(error, OSError) else None
    if number in DISK_FULL:
        return "the disk of the target is full; free some space"
    if number is not None:
        return f"{os.strerror(number)}; check the disk and its permissions"
    if isinstance(error, EOFError):
        return "it ends in the middle; copy it again"
    if isinstance(error, NotImplementedError):
        return "it is compressed in a way that Nightshift does not read; unpack it yourself, and pack the folder"
    return "it is damaged, or no archive of the kind that its name says; copy it again"


def _write_all(members: Iterator[_Member], folder: Path, archive: Path, limits: ArchiveLimits) -> None:
    allowed = archive.stat().st_size * limits.total_ratio + limits.spare_bytes
    for number, member in enumerate(members, 1):
        if number > limits.files:
            raise SourceError(f"{archive} holds more than {limits.files} files; unpack it yourself if you trust it")
        path = folder / _safe_name(member.name, archive)
        _refuse_long_name(path, member, archive)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            allowed -= _write(member, path, archive, min(limits.file_bytes, allowed))
        except (*BAD_FORMAT, EOFError) as error:
            raise SourceError(f"{archive}: the member {member.name!r} is damaged; copy the archive again") from error
        except NotImplementedError as error:
            raise SourceError(_unread(member.name, archive)) from error
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            fault = "has the name of a folder or lies in a file" if _is_mixed(path, folder) else "is in it twice"
            raise SourceError(f"{archive}: the member {member.name!r} {fault}; create the archive again") from error


def _unread(name: str, archive: Path) -> str:
    return (
        f"{archive}: the member {name!r} is compressed in a way that Nightshift does not read; unpack it yourself, and "
        "pack the folder"
    )


def _refuse_long_name(path: Path, member: _Member, archive: Path) -> None:
    longest = max(len(os.fsencode(part)) for part in path.parts)
    if longest > NAME_BYTES:
        raise SourceError(
            f"{archive}: the member {member.name[:SHOWN]!r}... has a name of {longest} bytes, above the {NAME_BYTES} "
            "that disks allow; unpack it yourself under another name"
        )


def _is_mixed(path: Path, folder: Path) -> bool:
    """Whether a file and a folder of the archive have one name."""
    above = [parent for parent in path.parents if folder in parent.parents]
    return path.is_dir() or any(parent.is_file() for parent in above)


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
    if name.startswith(("/", "\\")) or ".." in parts or DRIVE.match(name) or "\0" in name:
        raise SourceError(f"{archive}: {name!r} would be written outside its folder; do not trust this archive")
    return Path(*parts)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    if archive.name.lower().endswith(ZIPS):
        with zipfile.ZipFile(archive) as opened:
            yield _of_zip(opened, archive)
    else:
        with tarfile.open(archive, tarinfo=BoundedHeader) as tar:
            yield _of_tar(tar, archive)


def _of_zip(opened: zipfile.ZipFile, archive: Path) -> Iterator[_Member]:
    for info in opened.infolist():
        if info.is_dir():
            continue
        name = _zip_name(info)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise SourceError(
                f"{archive}: {name!r} is a link or device; create the archive without `zip --symlinks`, or pack the "
                "folder itself"
            )
        if info.flag_bits & ENCRYPTED:
            raise SourceError(f"{archive}: {name!r} is encrypted; unpack it yourself")
        if info.compress_type not in BOUNDED:
            raise SourceError(_unread(name, archive))
        yield _Member(name, lambda info=info: opened.open(info))  # type: ignore[misc]


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name as the same file has it in a folder or a tar.

    Without the flag for UTF-8, zipfile reads every name as code page 437. But many programs write UTF-8 all the same,
    and those of Unix write the bytes that the disk has.
    """
    if info.flag_bits & UTF_8 or info.filename.isascii():
        return info.filename
    raw = info.filename.encode("cp437")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return os.fsdecode(raw) if info.create_system in (UNIX, MACOS) else info.filename


class BoundedHeader(tarfile.TarInfo):
    """A header of a tar. One that extends the next header is read into memory completely, so its size is limited."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENSIONS and self.size > EXTENSION_BYTES:
            raise SourceError(f"a tar has a header of {self.size} bytes; unpack it yourself if you trust it")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


def _of_tar(tar: tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    for info in tar:
        if info.isdir():
            continue
        if not info.isreg():
            raise SourceError(
                f"{archive}: {info.name!r} is a link or device; create the archive with `tar --dereference "
                "--hard-dereference`, or pack the folder itself"
            )
        yield _Member(info.name, lambda info=info: cast(IO[bytes], tar.extractfile(info)))  # type: ignore[misc]
    _check_tar_end(tar, archive)


def _check_tar_end(tar: tarfile.TarFile, archive: Path) -> None:
    """Refuse a tar without its two final blocks of zeros: tarfile does not notice a file cut between two members."""
    file = cast(IO[bytes], tar.fileobj)
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise SourceError(f"{archive} ends in the middle or has a damaged header; copy it again")
    for _ in range(TAIL_BYTES // COPY_BYTES):  # a compressed stream has its checksum at its end
        data = file.read(COPY_BYTES)
        if not data:
            return
        if any(data):
            break
    raise SourceError(f"{archive} has data behind its end, so files may be missing; copy it again, or create it again")
