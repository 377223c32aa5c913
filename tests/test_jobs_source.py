"""SOURCE of `nightshift shards pack` as an address, on the command line."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from data_shards.index import read_index
from tests.datasets import image_folder
from tests.web_server import redirect, status, web_server

SPLITS = {"train/covid": 4, "train/normal": 4, "test/covid": 2, "test/normal": 2}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A zip of random images in split folders."""
    folder = tmp_path_factory.mktemp("archive")
    return shutil.make_archive(str(folder / "chest"), "zip", image_folder(folder / "images", SPLITS))


@pytest.fixture
def web(archive):
    with web_server() as server:
        server.content = Path(archive).read_bytes()
        yield server


@pytest.fixture
def run(tmp_path, monkeypatch, run_main):
    """Run a command; return its exit code, stdout and stderr."""
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(tmp_path / "storage"))
    monkeypatch.chdir(tmp_path)
    return run_main


def lines(text):
    return [line for line in text.splitlines() if line.startswith("Error")]


def test_an_address_is_packed_like_the_archive_itself(run, web, archive, tmp_path):
    local = run("shards", "pack", archive, "local", "--processes", 1)
    code, out, err = run("shards", "pack", f"{web.url}/chest.zip", "remote", "--processes", 1)

    assert (local[0], code, out) == (0, 0, "remote\n")
    assert read_index(str(tmp_path / "remote")).digest == read_index(str(tmp_path / "local")).digest
    assert f"downloading: {len(web.content) / 1e6:.1f} of {len(web.content) / 1e6:.1f} MB" in err


def test_a_second_pack_of_an_address_uses_the_download_of_the_first(run, web):
    run("shards", "pack", f"{web.url}/chest.zip", "first", "--processes", 1)

    code, _, err = run("shards", "pack", f"{web.url}/chest.zip", "second", "--processes", 1)

    assert (code, len(web.requests)) == (0, 1)
    assert f"using the copy of {web.url}/chest.zip from 20" in err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["ftp://host/x.zip"], "the scheme 'ftp' is not allowed; use a path, or an address that begins with http"),
        (["http://user:HIDDEN@:80/x.zip"], "no valid host or port"),
        (["kaggle:films"], "write kaggle:OWNER/NAME"),
        (["absent.zip"], "SOURCE 'absent.zip' does not exist"),
        (["http://127.0.0.1:9/x.zip", "--sha256", "abc"], "'abc' is not a sha256 of 64 hexadecimal digits"),
        (["http://127.0.0.1:9/x.zip", "--max-download", "much"], "'much' is not a size"),
        (["kaggle:owner/films", "--sha256", "0" * 64], "pin the version instead: kaggle:OWNER/NAME/versions/N"),
        (["kaggle:owner/films", "--max-download", "1GB"], "--max-download does not work with kaggle:"),
        (["images", "--refresh"], "are for addresses, and images is a path"),
        (["images", "--max-download", "1GB"], "are for addresses, and images is a path"),
        (["images", "--sha256", "0" * 64], "--sha256 is for an archive, and images is a folder"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_line(run, tmp_path, arguments, fault):
    (tmp_path / "images").mkdir()

    code, out, err = run("shards", "pack", *arguments[:1], "shards", *arguments[1:])

    assert (code, out, len(lines(err))) == (2, "", 1)
    assert fault in " ".join(err.split())
    assert "HIDDEN" not in err
    assert not (tmp_path / "shards").exists()


def test_a_target_that_is_not_free_is_refused_before_the_download(run, web, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/mine.txt").write_text("mine")

    code, _, err = run("shards", "pack", f"{web.url}/chest.zip", "shards")

    assert (code, web.requests) == (1, [])
    assert "shards is not empty; give a new folder" in err


@pytest.mark.parametrize("path", ["chest.zip", "chest"])
def test_the_error_of_a_bad_archive_names_the_address_and_not_the_copy(run, web, tmp_path, path):
    web.content = web.content[:1000]  # a zip by its first bytes

    code, _, err = run("shards", "pack", f"{web.url}/{path}?token=HIDDEN", "shards")

    assert (code, len(lines(err))) == (1, 1)
    assert lines(err)[0].startswith(f"Error: {web.url}/{path}?... cannot be downloaded: the archive is cut off")
    assert str(tmp_path) not in err
    assert "HIDDEN" not in err


def test_a_server_that_refuses_is_one_line_and_leaves_nothing(run, web, tmp_path):
    web.coming += [redirect("/elsewhere?key=HIDDEN"), status(403)]

    code, out, err = run("shards", "pack", web.url.replace("://", "://me:HIDDEN@") + "/chest.zip", "shards")

    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"{web.url}/chest.zip redirects to {web.url}/elsewhere?...",
        f"Error: {web.url}/chest.zip cannot be downloaded: the server denies access (status 403); check the address "
        "and the user name and password in it: https://USER:PASSWORD@HOST/FILE.zip",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["storage"]
    assert [path.suffix for path in (tmp_path / "storage/downloads").iterdir()] == [".lock"]


def test_the_sha256_of_a_local_archive_is_compared_too(run, archive, tmp_path):
    digest = hashlib.sha256(Path(archive).read_bytes()).hexdigest()

    wrong = run("shards", "pack", archive, "shards", "--sha256", "0" * 64)
    right = run("shards", "pack", archive, "shards", "--sha256", f"sha256:{digest.upper()}", "--processes", 1)

    assert (wrong[0], right[0]) == (1, 0)
    assert f"the sha256 of {archive} is {digest} and not 0000" in wrong[2]


def test_a_file_address_is_a_path(run, archive):
    assert run("shards", "pack", f"file://{archive}", "shards", "--processes", 1)[0] == 0


def test_images_are_added_from_an_address_too(run, web, tmp_path):
    base = shutil.make_archive(str(tmp_path / "base"), "zip", image_folder(tmp_path / "base", {"train/covid": 2,
                               "train/normal": 2}, size=(50, 30)))  # fmt: skip
    run("shards", "pack", base, "shards", "--processes", 1)

    code, _, err = run("shards", "add", "shards", f"{web.url}/chest.zip", "--processes", 1)

    assert (code, len(web.requests)) == (0, 1), err
    assert read_index(str(tmp_path / "shards")).samples_in("train") > 4


def test_an_address_is_not_downloaded_for_a_data_set_that_does_not_exist(run, web):
    code, _, err = run("shards", "add", "absent", f"{web.url}/chest.zip")

    assert (code, web.requests, len(lines(err))) == (1, [], 1)


def test_cache_shows_and_prunes_downloads(run, web, tmp_path):
    run("shards", "pack", web.url.replace("://", "://me:HIDDEN@") + "/chest.zip?token=HIDDEN", "shards")

    content = json.loads(run("cache", "show", "--json")[1])["downloads"]
    table = run("cache", "show")[1]
    kept = run("cache", "prune")[1]
    freed = run("cache", "prune", "--all")[1]

    digest = hashlib.sha256(web.content).hexdigest()
    assert content["folder"] == str(tmp_path / "storage/downloads")
    assert content["entries"][0].items() >= {"address": f"{web.url}/chest.zip?...", "sha256": digest}.items()
    assert digest[:12] in table
    assert "HIDDEN" not in str(content) + table
    assert kept == "0.000 GB freed\n"
    assert freed == f"{len(web.content) / 1e9:.3f} GB freed\n"
    assert json.loads(run("cache", "show", "--json")[1])["downloads"]["entries"] == []
