"""Downloads that are cut, given up, too large or wrong: what continues, what starts again and what is refused."""

import hashlib
import subprocess
import sys

import pytest

from data_shards.download.address import parse_address
from data_shards.download.kept_files import DownloadOptions, kept_file
from data_shards.errors import DownloadFailed
from tests import downloads
from tests.disks import small_disk
from tests.downloads import NOISE, ZIP, left_in, zip_bytes
from tests.web_server import cut, status

web, fetch = downloads.web, downloads.fetch


def test_an_archive_is_downloaded_with_its_progress(web, fetch):
    name, content = fetch(f"{web.url}/sets/chest.zip")

    assert (name, content) == ("chest.zip", ZIP)
    assert fetch.progress[0] == (0, len(ZIP))
    assert fetch.progress[-1] == (len(ZIP), len(ZIP))


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
