"""Kept files: shared by commands that run at once, listed, pruned, and found damaged."""

import errno
import fcntl
import hashlib
import shutil
import threading

import pytest

from data_shards.download import kept_files as kept_files_module
from data_shards.download.address import parse_address
from data_shards.download.kept_files import MAX_BYTES, DownloadOptions, kept_file, kept_files, prune_kept_files
from data_shards.errors import DownloadFailed
from jobs.cli.source import DEFAULT_MAX
from tests import downloads
from tests.downloads import ZIP, zip_bytes
from tests.web_server import cut, status

web, fetch = downloads.web, downloads.fetch


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


def test_a_kept_file_with_another_sha256_is_refused(web, fetch):
    fetch(f"{web.url}/chest.zip")

    with pytest.raises(DownloadFailed, match="its sha256 is"):
        fetch(f"{web.url}/chest.zip", sha256="0" * 64)


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


def test_the_limits_of_the_help_and_of_the_code_agree():
    assert f"{MAX_BYTES // 10**9}GB" == DEFAULT_MAX
