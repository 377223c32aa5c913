import errno
import fcntl
import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile

import pytest

from data_shards.download import kept_files as kept_files_module
from data_shards.download.address import parse_address
from data_shards.download.kept_files import MAX_BYTES, DownloadOptions, kept_file, kept_files, prune_kept_files
from data_shards.errors import DownloadFailed, SourceError
from jobs.cli.source import DEFAULT_MAX
from tests.disks import small_disk
from tests.web_server import certificate_for, cut, redirect, status, web_server

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


def test_an_archive_is_downloaded_with_its_progress(web, fetch):
    name, content = fetch(f"{web.url}/sets/chest.zip")

    assert (name, content) == ("chest.zip", ZIP)
    assert fetch.progress[0] == (0, len(ZIP))
    assert fetch.progress[-1] == (len(ZIP), len(ZIP))


def test_a_second_download_of_an_address_asks_nobody_and_says_so(web, fetch):
    fetch(f"{web.url}/chest.zip")

    assert fetch(f"{web.url}/chest.zip") == ("chest.zip", ZIP)

    assert len(web.requests) == 1
    assert "using the copy of" in fetch.notes[0]
    assert "--refresh downloads it again" in fetch.notes[0]


def test_refresh_downloads_again(web, fetch):
    fetch(f"{web.url}/chest.zip")
    web.content = zip_bytes(other=b"new")

    assert fetch(f"{web.url}/chest.zip", refresh=True)[1] == web.content
    assert fetch(f"{web.url}/chest.zip")[1] == web.content


def test_a_cut_download_continues_where_it_was_cut(web, fetch):
    web.coming += [cut(1_200_000), cut(1_200_000)]

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP

    assert web.asked_ranges() == [None, "bytes=1200000-", "bytes=2400000-"]
    assert all(headers["If-Range"] == web.etag() for _, headers in web.requests[1:])


def test_a_download_that_was_given_up_continues_with_the_next_command(web, fetch):
    web.coming += [cut(1_000_000), *[status(503)] * 9]
    with pytest.raises(DownloadFailed, match=r"status 503, in 5 tries .*it continues after 1000000 bytes"):
        fetch(f"{web.url}/chest.zip")
    web.coming.clear()
    web.requests.clear()

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert web.asked_ranges() == ["bytes=1000000-"]


def test_a_file_that_changed_meanwhile_starts_again(web, fetch):
    def change(request):
        request.good(1_000_000)
        web.content = zip_bytes(other=NOISE[::-1])

    web.coming.append(change)

    assert fetch(f"{web.url}/chest.zip")[1] == web.content != ZIP


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_validator_a_cut_download_starts_again(web, fetch, tag):
    web.tag = tag
    web.coming.append(cut(1_000_000))

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert web.asked_ranges() == [None, None]


def test_a_server_without_ranges_sends_it_all_again(web, fetch):
    web.ranges = False
    web.coming.append(cut(1_000_000))

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert len(web.requests) == 2


def test_a_part_of_another_version_is_not_appended(web, fetch):
    web.coming += [cut(1_000_000), status(206, NOISE[:5], ETag='"other"', Content_Range="bytes 1000000-1000004/9")]

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP


def test_a_part_from_another_offset_is_not_appended(web, fetch):
    web.coming += [cut(1_000_000), status(206, NOISE[:5], Content_Range="bytes 0-4/5")]

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP


def test_a_length_that_is_too_large_does_not_lose_the_file(web, fetch):
    web.coming.append(lambda request: request.good(length=len(ZIP) + 7))

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert web.asked_ranges() == [None, f"bytes={len(ZIP)}-"]


def test_a_server_without_ranges_that_always_announces_too_much_is_given_up(web, fetch, tmp_path):
    web.ranges = False
    web.coming += [lambda request: request.good(length=len(ZIP) + 7)] * 50

    with pytest.raises(DownloadFailed, match=f"the connection ended after {len(ZIP)} of {len(ZIP) + 7} bytes, in 5"):
        fetch(f"{web.url}/chest.zip")

    assert 5 <= len(web.requests) <= 8


def test_a_file_of_unknown_length_is_downloaded(web, fetch):
    web.coming.append(lambda request: request.good(length=-1))

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert fetch.progress[-1] == (len(ZIP), None)


def test_faults_of_the_server_are_waited_for_longer_and_longer(web, fetch):
    web.coming += [status(500), status(502), status(503, Retry_After="30"), status(429, Retry_After="9999")]

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert fetch.pauses == [1, 2, 30, 60]


def test_many_cuts_with_progress_between_them_are_no_failure(web, fetch):
    web.content = zip_bytes(**{str(number): NOISE[number:] for number in range(4)})
    web.coming += [cut(1_000_000)] * 9

    assert fetch(f"{web.url}/chest.zip")[1] == web.content


@pytest.mark.parametrize(
    ("code", "fault"),
    [(404, "there is no such file"), (410, "no such file"), (401, "denies access"), (403, "denies access")],
)
def test_an_answer_that_another_try_does_not_change_ends_the_download(web, fetch, tmp_path, code, fault):
    web.coming.append(status(code, b"<html>no</html>"))

    with pytest.raises(DownloadFailed, match=rf"127.0.0.1:\d+/chest.zip cannot be downloaded: .*{fault}.*{code}"):
        fetch(f"{web.url}/chest.zip")

    assert len(web.requests) == 1
    assert left_in(tmp_path) == []


def test_a_server_that_is_not_there_is_named_at_once(fetch):
    with pytest.raises(DownloadFailed, match=r"127.0.0.1:9 refuses the connection; check the address"):
        fetch("http://127.0.0.1:9/chest.zip")

    assert fetch.pauses == []


def test_an_announced_size_above_the_limit_is_refused_before_a_byte(web, fetch, tmp_path):
    with pytest.raises(DownloadFailed, match=r"it has 0.003 GB, more than the limit of 0.001 GB; raise --max-download"):
        fetch(f"{web.url}/chest.zip", max_bytes=1_000_000)

    assert left_in(tmp_path) == []


def test_more_bytes_than_the_limit_end_the_download(web, fetch, tmp_path):
    web.coming.append(lambda request: request.good(length=-1))

    with pytest.raises(DownloadFailed, match=r"more than the limit of 0\.001 GB"):
        fetch(f"{web.url}/chest.zip", max_bytes=1_000_000)

    assert left_in(tmp_path) == []


def test_a_file_that_does_not_fit_on_the_disk_is_refused_before_a_byte(web, fetch, tmp_path):
    web.coming.append(lambda request: request.good(0, length=10**18))

    with pytest.raises(DownloadFailed, match=r"1e\+09 GB are to come and .* GB free; free some space"):
        fetch(f"{web.url}/chest.zip", max_bytes=10**19)

    assert left_in(tmp_path) == []


def test_a_disk_that_fills_up_on_the_way_is_given_back(web, tmp_path):
    web.coming.append(lambda request: request.good(length=-1))

    with small_disk(tmp_path / "disk", 2) as disk:
        options = DownloadOptions(folder=disk.folder / "downloads")
        with pytest.raises(OSError, match="No space left"), kept_file(parse_address(f"{web.url}/chest.zip"), options):
            pass

        assert left_in(disk.folder) == []


def test_a_killed_download_continues_with_the_next_command(web, fetch, tmp_path):
    script = (
        "import sys, os, pathlib; from data_shards.download.kept_files import *; "
        "options = DownloadOptions(folder=pathlib.Path(sys.argv[2]), "
        "on_bytes=lambda done, _: done > 2_000_000 and os.kill(os.getpid(), 9)); "
        "from data_shards.download.address import parse_address; "
        "kept_file(parse_address(sys.argv[1]), options).__enter__()"
    )
    command = [sys.executable, "-c", script, f"{web.url}/chest.zip", str(tmp_path / "downloads")]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -9

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert web.asked_ranges()[0] is None
    assert int(web.asked_ranges()[1].removeprefix("bytes=").removesuffix("-")) > 900_000


def test_another_sha256_is_refused_and_nothing_is_kept(web, fetch, tmp_path):
    with pytest.raises(DownloadFailed, match=rf"its sha256 is {hashlib.sha256(ZIP).hexdigest()} and not 0000"):
        fetch(f"{web.url}/chest.zip", sha256="0" * 64)

    assert left_in(tmp_path) == []
    assert fetch(f"{web.url}/chest.zip", sha256=hashlib.sha256(ZIP).hexdigest().upper())[1] == ZIP


def test_a_kept_file_with_another_sha256_is_refused(web, fetch):
    fetch(f"{web.url}/chest.zip")

    with pytest.raises(DownloadFailed, match="its sha256 is"):
        fetch(f"{web.url}/chest.zip", sha256="0" * 64)


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


def test_of_two_commands_at_once_one_downloads(web, fetch, tmp_path):
    started, goes_on = threading.Event(), threading.Event()

    def slow(request):
        started.set()
        goes_on.wait(600)
        request.good()

    web.coming.append(slow)
    found, waits = [], []
    options = {"folder": tmp_path / "downloads", "pause": lambda _: None}

    def load(on_note):
        with kept_file(parse_address(f"{web.url}/chest.zip"), DownloadOptions(**options, on_note=on_note)) as path:
            found.append(path.read_bytes())

    def note(line):
        waits.append(line)
        goes_on.set()

    threads = [threading.Thread(target=load, args=(on_note,)) for on_note in (lambda _: None, note)]
    threads[0].start()
    started.wait(600)
    threads[1].start()
    for thread in threads:
        thread.join()

    assert found == [ZIP, ZIP]
    assert len(web.requests) == 1
    assert waits[0] == f"waiting for another command that uses {web.url}/chest.zip"


def test_commands_that_read_the_same_kept_file_do_not_wait_for_each_other(web, fetch, tmp_path):
    def refuse_to_wait(line):
        assert "waiting" not in line

    options = DownloadOptions(folder=tmp_path / "downloads", on_note=refuse_to_wait)
    fetch(f"{web.url}/chest.zip")

    with (
        kept_file(parse_address(f"{web.url}/chest.zip"), options) as first,
        kept_file(parse_address(f"{web.url}/chest.zip"), options) as second,
    ):
        assert first.read_bytes() == second.read_bytes() == ZIP


def test_a_file_that_is_pruned_between_its_download_and_its_use_is_downloaded_again(web, fetch, tmp_path, monkeypatch):
    flock, removed = fcntl.flock, []

    def prune_before_sharing(file, operation):
        if operation & fcntl.LOCK_SH and not removed and list(tmp_path.rglob("kept.json")):
            flock(file, fcntl.LOCK_UN)
            removed.append(prune_kept_files(tmp_path / "downloads", 0))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", prune_before_sharing)

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert removed[0] > len(ZIP)
    assert len(web.requests) == 2


def test_no_lock_is_held_while_another_is_asked_for(web, fetch, monkeypatch):
    flock, held = fcntl.flock, set()

    def as_on_nfs(file, operation):
        if operation & fcntl.LOCK_UN:
            held.discard(file)
        elif file in held:
            raise OSError(errno.EDEADLK, "another holder of LOCK_SH asks for LOCK_EX too")
        else:
            held.add(file)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP


def test_the_sha256_of_a_download_is_computed_once(web, fetch, monkeypatch):
    monkeypatch.setattr(kept_files_module, "NOTED_BYTES", 0)

    fetch(f"{web.url}/chest.zip", sha256=hashlib.sha256(ZIP).hexdigest())

    assert fetch.notes == ["computing the sha256 of 0.0 GB"]


def test_the_list_leaves_out_what_another_command_removes_meanwhile(tmp_path):
    draft = tmp_path / "key" / "draft"

    def come_and_go():
        for _ in range(1000):
            draft.parent.mkdir()
            draft.write_bytes(b"x")
            draft.unlink()
            draft.parent.rmdir()

    other = threading.Thread(target=come_and_go)
    other.start()
    lists = []
    while other.is_alive():
        lists += [kept_files(tmp_path)]
    other.join()

    assert {kept.bytes for found in lists for kept, _ in found} <= {0, 1}
    assert kept_files(tmp_path) == ()


def test_prune_passes_over_what_another_command_has_pruned(web, fetch, tmp_path, monkeypatch):
    fetch(f"{web.url}/chest.zip")
    flock, folder = fcntl.flock, next(tmp_path.rglob("kept.json")).parent

    def remove_before_locking(file, operation):
        shutil.rmtree(folder)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_before_locking)

    assert prune_kept_files(tmp_path / "downloads", 0) == 0


def test_kept_files_are_listed_and_pruned_but_not_while_they_are_used(web, fetch, tmp_path):
    folder = tmp_path / "downloads"
    fetch(f"{web.url}/chest.zip")
    ((kept, used),) = kept_files(folder)

    with kept_file(parse_address(f"{web.url}/chest.zip"), DownloadOptions(folder=folder)) as path:
        assert prune_kept_files(folder, 0) == 0
        assert path.exists()
    assert prune_kept_files(folder, 3600) == 0
    freed = prune_kept_files(folder, 0)

    assert (kept.address, kept.name, kept.bytes) == (f"{web.url}/chest.zip", "chest.zip", len(ZIP))
    assert kept.sha256 == hashlib.sha256(ZIP).hexdigest()
    assert used > 0
    assert freed >= len(ZIP)
    assert kept_files(folder) == ()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"name": "../../x", "bytes": 1}', '{"name": 7}', "\0"])
def test_a_damaged_note_of_a_kept_file_means_that_nothing_is_kept(web, fetch, tmp_path, content):
    fetch(f"{web.url}/chest.zip")
    next(tmp_path.rglob("kept.json")).write_text(content)

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert len(web.requests) == 2


def test_a_damaged_note_of_a_draft_means_that_it_starts_again(web, fetch, tmp_path):
    web.coming += [cut(1_000_000), *[status(503)] * 9]
    with pytest.raises(DownloadFailed):
        fetch(f"{web.url}/chest.zip")
    web.coming.clear()
    next(tmp_path.rglob("draft.json")).write_text('{"version": 7')

    assert fetch(f"{web.url}/chest.zip")[1] == ZIP
    assert web.asked_ranges()[-1] is None


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


def test_the_limits_of_the_help_and_of_the_code_agree():
    assert f"{MAX_BYTES // 10**9}GB" == DEFAULT_MAX
