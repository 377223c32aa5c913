"""Addresses of files to download: what they name, and which mean the same file."""

import pytest

from data_shards.download.address import parse_address
from data_shards.errors import SourceError
from tests import downloads
from tests.downloads import left_in

web, fetch = downloads.web, downloads.fetch


def test_a_renewed_signature_is_the_same_file_and_another_parameter_is_another(web, fetch):
    fetch(f"{web.url}/get?file=a&X-Amz-Signature=1&X-Amz-Expires=60")
    fetch(f"{web.url}/get?file=a&X-Amz-Signature=2&X-Amz-Expires=60")
    fetch(f"{web.url}/get?file=b&X-Amz-Signature=2&X-Amz-Expires=60")

    assert [path.partition("&")[0] for path, _ in web.requests] == ["/get?file=a", "/get?file=b"]


@pytest.mark.parametrize("path", ["%2e%2e%2f%2e%2e%2fevil.zip", "a%00b.zip", "-rf.zip", "ä ö.zip", "x" * 300 + ".zip"])
def test_a_name_in_the_address_is_never_a_path(web, fetch, tmp_path, path):
    web.headers = {"Content-Disposition": 'attachment; filename="../../../evil.zip"'}

    name, _ = fetch(f"{web.url}/{path}")

    assert name.isascii()
    assert not set("/\\ \0") & set(name)
    assert len(name) < 120
    assert {file.parent.parent for file in left_in(tmp_path)} == {tmp_path / "downloads"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ftp://host/x.zip", "the scheme 'ftp' is not allowed; use a path"),
        ("http://", "no valid host or port"),
        ("http:///x.zip", "no valid host or port"),
        ("http://user:PASSWORD@host:x/x.zip", "no valid host or port"),
        ("https://host:99999/x.zip", "no valid host or port"),
        ("http://ho\nst/x.zip", "control characters"),
        ("s3://bucket/\x1b[31mx.zip", "control characters"),
        ("http://host/\u202ex.zip", "control characters"),
        ("http://[::1/x.zip", "no valid host or port"),
        ("s3://", "names no file; write s3://BUCKET/FILE.zip"),
        ("gs://bucket/", "names no file"),
        ("s3://key:PASSWORD@bucket/x.zip", "takes no credentials; set AWS_ACCESS_KEY_ID"),
        ("kaggle:name", "write kaggle:OWNER/NAME"),
        ("kaggle:a/b/versions/0", "write kaggle:OWNER/NAME"),
        ("kaggle:../../x", "write kaggle:OWNER/NAME"),
        ("https://drive.google.com/drive/folders/1abcdefghijklmnopqrstuvwxyz", "is a Drive folder"),
        ("https://drive.google.com/file/d/", "names no file in Drive"),
    ],
)
def test_an_address_that_names_no_file_is_refused_without_its_credentials(text, fault):
    with pytest.raises(SourceError, match=fault) as caught:
        parse_address(text)

    assert "PASSWORD" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "link",
    [
        "https://drive.google.com/file/d/1AbCdEfGhIjKlMnOp/view?usp=sharing",
        "https://drive.google.com/file/u/0/d/1AbCdEfGhIjKlMnOp/view",
        "https://drive.google.com/open?id=1AbCdEfGhIjKlMnOp",
        "https://drive.google.com/uc?export=download&id=1AbCdEfGhIjKlMnOp",
        "https://drive.usercontent.google.com/download?id=1AbCdEfGhIjKlMnOp&confirm=t",
    ],
)
def test_all_links_of_a_drive_file_are_one_address(link):
    assert parse_address(link) == parse_address("https://drive.google.com/file/d/1AbCdEfGhIjKlMnOp")
