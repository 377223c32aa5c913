"""Files to download, a server that gives them, and a download as a pack makes it."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from data_shards.download.address import parse_address
from data_shards.download.kept_files import DownloadOptions, kept_file
from tests.web_server import web_server

NOISE = hashlib.shake_256(b"pixels").digest(3_000_000)


def zip_bytes(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (members or {"noise": NOISE}).items():
            archive.writestr(f"a/{name}.png", data)
    return buffer.getvalue()


def tar_bytes(mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        info = tarfile.TarInfo("a/x.png")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"data"))
    return buffer.getvalue()


ZIP = zip_bytes()


@pytest.fixture
def web():
    with web_server() as server:
        server.content = ZIP
        yield server


@pytest.fixture
def fetch(tmp_path):
    """Download an address as a pack does; return the name and the content of the file."""

    def fetch(url, **options):
        fetch.notes, fetch.pauses, fetch.progress = [], [], []
        chosen = DownloadOptions(
            folder=tmp_path / "downloads",
            on_note=fetch.notes.append,
            pause=fetch.pauses.append,
            on_bytes=lambda *counts: fetch.progress.append(counts),
            **options,
        )
        with kept_file(parse_address(url), chosen) as path:
            return path.name, path.read_bytes()

    return fetch


def left_in(folder):
    """Files of downloads, locks apart."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
