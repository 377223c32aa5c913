"""Files of HTTP servers: compression for the way, redirects, certificates and passwords."""

import gzip
import hashlib

import pytest

from data_shards.download import kept_files as kept_files_module
from data_shards.download.address import parse_address
from data_shards.errors import DownloadFailed
from tests import downloads
from tests.downloads import ZIP, left_in, tar_bytes
from tests.web_server import certificate_for, redirect, status, web_server

web, fetch = downloads.web, downloads.fetch


def test_a_compression_for_the_way_is_undone(web, fetch):
    web.content, web.headers = gzip.compress(ZIP, 1), {"Content-Encoding": "gzip"}

    assert fetch(f"{web.url}/chest.zip", sha256=hashlib.sha256(ZIP).hexdigest()) == ("chest.zip", ZIP)


def test_a_command_that_ends_after_the_compression_was_undone_is_no_obstacle_to_the_next_one(web, fetch, monkeypatch):
    web.content, web.headers = gzip.compress(ZIP, 1), {"Content-Encoding": "gzip"}
    with monkeypatch.context() as patch:
        patch.setattr(kept_files_module, "archive_ending", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(f"{web.url}/chest.zip")

    assert fetch(f"{web.url}/chest.zip") == ("chest.zip", ZIP)
    assert web.asked_ranges() == [None, None]


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_gz_file_that_the_server_calls_compressed_stays_as_it_is(web, fetch):
    web.content, web.headers = tar_bytes("w:gz"), {"Content-Encoding": "gzip"}

    assert fetch(f"{web.url}/chest.tar.gz") == ("chest.tar.gz", web.content)


def test_a_compression_to_more_than_the_limit_is_refused(web, fetch, tmp_path):
    web.content, web.headers = gzip.compress(bytes(50_000_000), 1), {"Content-Encoding": "gzip"}

    with pytest.raises(DownloadFailed, match="larger than the limit when decompressed"):
        fetch(f"{web.url}/chest.zip", max_bytes=1_000_000)

    assert left_in(tmp_path) == []


def test_an_encoding_that_was_not_asked_for_is_refused(web, fetch):
    web.headers = {"Content-Encoding": "br"}

    with pytest.raises(DownloadFailed, match="in the encoding 'br'"):
        fetch(f"{web.url}/chest.zip")


def test_a_redirect_is_followed_and_told(web, fetch):
    web.coming.append(redirect("/cdn/file?signature=SECRET"))

    assert fetch(f"{web.url}/chest.zip") == ("chest.zip", ZIP)
    assert fetch.notes == [f"{web.url}/chest.zip redirects to {web.url}/cdn/file?..."]


def test_a_redirect_cannot_write_control_characters_to_the_terminal(web, fetch):
    web.coming.append(redirect("/\x9b31mred.zip"))

    fetch(f"{web.url}/chest.zip")

    assert fetch.notes[0].isprintable()
    assert fetch.notes[0].endswith("/%C2%9B31mred.zip")


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x.zip", "gopher://h/", "javascript:1"])
def test_a_redirect_to_another_scheme_is_refused(web, fetch, location):
    web.coming.append(redirect(location))

    with pytest.raises(DownloadFailed, match=r"redirects to an address with the scheme .* which is not allowed"):
        fetch(f"{web.url}/chest.zip")

    assert len(web.requests) == 1


@pytest.mark.parametrize("location", ["http://h:port/", "http://[::1/", "//h:99999/", "http:// /"])
def test_a_redirect_to_no_host_is_one_line(web, fetch, location):
    web.coming.append(redirect(location))

    with pytest.raises(DownloadFailed, match="it redirects to an invalid address"):
        fetch(f"{web.url}/chest.zip")


def test_a_redirect_from_https_to_http_is_refused_unless_it_is_allowed(web, fetch, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate_for(tmp_path)))
    with web_server(certificate=tmp_path / "host.pem") as secure:
        secure.coming += [redirect(f"{web.url}/chest.zip")] * 2
        with pytest.raises(DownloadFailed, match=rf"redirects from https to {web.url}/chest.zip, .* --allow-http-redi"):
            fetch(f"{secure.url}/chest.zip")

        assert web.requests == []
        assert fetch(f"{secure.url}/chest.zip", allow_http=True)[1] == ZIP


def test_a_certificate_that_is_not_trusted_is_refused_with_the_cure(fetch, tmp_path):
    certificate_for(tmp_path)
    with (
        web_server(certificate=tmp_path / "host.pem") as secure,
        pytest.raises(DownloadFailed, match=r"the certificate of localhost:\d+ is not trusted; set SSL_CERT_FILE"),
    ):
        fetch(f"{secure.url}/chest.zip")

    assert fetch.pauses == []


def test_redirects_in_a_circle_end(web, fetch):
    web.coming += [redirect("/chest.zip")] * 100

    with pytest.raises(DownloadFailed, match="more than 10 redirects"):
        fetch(f"{web.url}/chest.zip")


def test_a_password_is_sent_to_its_host_alone_and_shown_nowhere(web, fetch, tmp_path):
    with web_server() as other:
        other.content = ZIP
        address = web.url.replace("://", "://user:PASSWORD@") + "/chest.zip?token=SECRET"
        web.coming.append(redirect(f"{other.url}/moved.zip"))

        fetch(address)

    shown = f"{fetch.notes} {parse_address(address)!r} {[path.as_posix() for path in tmp_path.rglob('*')]}"
    shown += "".join(path.read_text("latin-1") for path in left_in(tmp_path) if path.suffix == ".json")
    assert web.requests[0][1]["Authorization"] == "Basic dXNlcjpQQVNTV09SRA=="
    assert "Authorization" not in other.requests[0][1]
    assert not any(secret in shown for secret in ("PASSWORD", "SECRET", "user:"))


def test_errors_show_no_credentials(web, fetch):
    web.coming.append(status(403))

    with pytest.raises(DownloadFailed) as caught:
        fetch(web.url.replace("://", "://user:HIDDEN@") + "/chest.zip?X-Amz-Signature=SECRET")

    assert f"{web.url}/chest.zip?... cannot be downloaded" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("HIDDEN", "SECRET"))
