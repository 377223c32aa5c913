"""What a downloaded file is, by its content: an archive that can be unpacked, or something else that has a name."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from data_shards.errors import DownloadFailed, SourceError
from data_shards.pack.archives import BoundedHeader

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
GZIP_START = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")
OTHERS = {
    b"Rar!\x1a\x07": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\xff\xd8\xff": "one JPEG image",
    b"\x89PNG": "one PNG image",
    b"%PDF": "a PDF document",
    b"<?xml": "an XML document",
    b"{": "a JSON document",
}
GIVE_ARCHIVE = "give the address of a .zip or .tar file"
COPY_BYTES = 1 << 20
DAMAGE = (OSError, EOFError, zlib.error)


def refuse_web_page(shown: str, start: bytes) -> None:
    """Refuse a file that begins like an HTML page: a login, an error or a page about the file.

    Raises:
        DownloadFailed: It does.
    """
    text = start.removeprefix(BOM).lstrip().lower()
    if text.startswith(PAGE_STARTS) or (text.startswith(b"<") and b"<html" in text):
        cure = "open it in a browser; it may need a login or a click. Give the address of the archive itself"
        raise DownloadFailed(shown, "the address gave a web page, not an archive", cure)


def archive_ending(path: Path, shown: str) -> str:
    """Return ".zip" or ".tar" for the content of a file; a compressed tar is ".tar" too.

    Raises:
        DownloadFailed: It is no archive that can be unpacked.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    refuse_web_page(shown, start)
    if start.startswith(ZIP_STARTS):
        if not zipfile.is_zipfile(path):  # its directory is at the end
            raise DownloadFailed(shown, "the archive is cut off or damaged", "check the address, and try it again")
        return ".zip"
    if _is_tar(path, shown):
        return ".tar"
    if zipfile.is_zipfile(path):  # one with a program in front of it
        return ".zip"
    raise DownloadFailed(shown, f"the address gave {_name(start)}, not a .zip or .tar archive", GIVE_ARCHIVE)


def undo_gzip(path: Path, name: str, max_bytes: int, *, before_replace: Callable[[], None]) -> None:
    """Decompress a file that the server compressed for the way; `before_replace` is called when that is done.

    Servers also say so of a file that is a .gz by itself; such a file stays as it is.

    Raises:
        ValueError: It is damaged, or larger than the limit when decompressed.
    """
    target = path.with_name(f"{path.name}.plain")
    try:
        with gzip.open(path) as source, target.open("wb") as file:
            start = source.read(len(GZIP_START))
            if name.lower().endswith((".gz", ".tgz")) and start != GZIP_START:
                return
            file.write(start)
            while data := source.read(COPY_BYTES):
                file.write(data)
                if file.tell() > max_bytes:
                    raise ValueError("it is larger than the limit when decompressed")
        before_replace()
        target.replace(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError("what the server sent is not gzip, as it says, or damaged") from error
    finally:
        target.unlink(missing_ok=True)


def _is_tar(path: Path, shown: str) -> bool:
    try:
        with tarfile.open(path, tarinfo=BoundedHeader):
            return True
    except (tarfile.TarError, *DAMAGE):
        return False
    except SourceError as error:
        fault, _, cure = str(error).partition("; ")
        raise DownloadFailed(shown, fault, f"download it and {cure}") from error


def _name(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start.startswith(GZIP_START):
        return "a gzip file without a tar in it"
    return next((name for magic, name in OTHERS.items() if start.startswith(magic)), "another file")
