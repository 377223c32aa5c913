"""The content of a downloaded file decides whether it is an archive, and of which kind."""

import gzip
import io
import tarfile

import pytest

from data_shards.errors import DownloadFailed
from tests import downloads
from tests.downloads import ZIP, left_in, tar_bytes

web, fetch = downloads.web, downloads.fetch


@pytest.mark.parametrize(
    ("content", "ending"),
    [(ZIP, ".zip"), (tar_bytes(), ".tar"), (tar_bytes("w:gz"), ".tar"), (tar_bytes("w:xz"), ".tar")],
)
@pytest.mark.parametrize("path", ["download?id=7", "wrong.gif", "wrong.zip", "wrong.tar.gz", ""])
def test_the_content_decides_what_the_archive_is(web, fetch, content, ending, path):
    web.content = content

    name, found = fetch(f"{web.url}/{path}")

    assert found == content
    assert name.lower().endswith((ending, ".tar.gz") if ending == ".tar" else ".zip")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "a web page, not an archive; open it in a browser"),
        (b"\xef\xbb\xbf \n<HTML>" + bytes(3000), "a web page"),
        (b"<!-- page --><html></html>", "a web page"),
        (b'<?xml version="1.0"?><!DOCTYPE html><html/>', "a web page"),
        (b"", "an empty file"),
        (b"Rar!\x1a\x07\x01\x00", "a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c\x00", "a 7z archive"),
        (b"\x28\xb5\x2f\xfd\x00", "a Zstandard archive"),
        (b"\xff\xd8\xff\xe0", "one JPEG image"),
        (b'<?xml version="1.0"?><Error/>', "an XML document"),
        (b'{"error": 1}', "a JSON document"),
        (gzip.compress(b"no tar", mtime=0), "a gzip file without a tar in it"),
        (b"words", "another file"),
    ],
)
def test_what_is_no_archive_is_named_and_not_kept(web, fetch, tmp_path, content, named):
    web.content = content

    with pytest.raises(DownloadFailed, match=f"chest.zip cannot be downloaded: the address gave {named}"):
        fetch(f"{web.url}/chest.zip")

    assert left_in(tmp_path) == []


def test_a_tar_whose_first_header_would_fill_the_memory_is_not_kept(web, fetch, tmp_path):
    member = tarfile.TarInfo("a/x.png")
    member.pax_headers = {"comment": "x" * (2 << 20)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    web.content = buffer.getvalue()

    with pytest.raises(DownloadFailed, match=r"a header of 20971.. bytes; download it and unpack it yourself if you"):
        fetch(f"{web.url}/chest.tar.xz")

    assert left_in(tmp_path) == []


@pytest.mark.parametrize("kept_bytes", [10, len(ZIP) // 2, len(ZIP) - 30])
def test_a_zip_archive_that_is_cut_off_is_not_kept_even_if_the_server_gives_no_length(web, fetch, tmp_path, kept_bytes):
    web.coming.append(lambda request: request.good(upto=kept_bytes, length=-1))

    with pytest.raises(DownloadFailed, match=r"chest\.zip cannot be downloaded: the archive is cut off or damaged"):
        fetch(f"{web.url}/chest.zip")

    assert left_in(tmp_path) == []
    assert fetch(f"{web.url}/chest.zip")[1] == ZIP


def test_a_web_page_of_any_size_is_refused_at_its_beginning(web, fetch):
    web.content = b"<html>" + bytes(3_000_000)

    with pytest.raises(DownloadFailed, match="a web page"):
        fetch(f"{web.url}/chest.zip")

    assert all(done < 3_000_000 for done, _ in fetch.progress)
