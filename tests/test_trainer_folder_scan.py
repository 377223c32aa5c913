import os
import socket

import pytest

from trainer.data.folder_scan import FolderScan, scan_folder


def put(root, *names):
    """Write a file for each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"content")


def names_below(root):
    return [os.path.relpath(path, root) for path in scan_folder(root).paths]


def test_every_file_is_listed_in_order_of_name_whatever_its_suffix(tmp_path):
    put(tmp_path, "b/film.WEBP", "a.png", "b/film", "c.dcm", "notes.txt", "b/archive.tar.gz")

    scan = scan_folder(tmp_path)

    expected = ["a.png", "b/archive.tar.gz", "b/film", "b/film.WEBP", "c.dcm", "notes.txt"]
    assert scan == FolderScan(paths=tuple(str(tmp_path / name) for name in expected), ignored=0)


@pytest.mark.parametrize(
    "name",
    [
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
        "__MACOSX/._film.png",
        "@eaDir/film.png/SYNOPHOTO_THUMB_M.jpg",
        "$RECYCLE.BIN/film.png",
        "lost+found/film.png",
        ".ipynb_checkpoints/film.png",
    ],
)
@pytest.mark.parametrize("folder", ["", "deep/er/"])
def test_system_files_are_ignored_at_every_depth_and_counted(tmp_path, folder, name):
    put(tmp_path, "film.png", f"{folder}film.png", f"{folder}{name}")

    scan = scan_folder(tmp_path)

    assert scan.ignored == 1
    assert names_below(tmp_path) == sorted({"film.png", f"{folder}film.png"})


def test_a_link_to_a_folder_is_followed(tmp_path):
    put(tmp_path / "elsewhere", "film.png")
    put(tmp_path / "root", "a.png")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")

    assert names_below(tmp_path / "root") == ["a.png", "link/film.png"]


def test_links_in_a_circle_end_and_each_file_is_listed_once(tmp_path):
    put(tmp_path, "z/film.png")
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "self").symlink_to("self")

    assert names_below(tmp_path) == ["self", "z/film.png"]  # under the folder's own path, not the link's


def test_pipes_sockets_and_broken_links_are_listed_without_opening_them(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "absent")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")

    assert names_below(tmp_path) == ["link.jpg", "pipe.jpg", "socket.jpg", "zero.jpg"]


def test_a_folder_that_cannot_be_listed_is_listed_itself(tmp_path, monkeypatch):
    put(tmp_path, "closed/film.png", "open/film.png")
    scandir = os.scandir

    def refuse(path):
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)

    assert names_below(tmp_path) == ["closed", "open/film.png"]


def test_a_name_that_is_not_utf_8_is_listed(tmp_path):
    (tmp_path / os.fsdecode(b"film-\xff.png")).write_bytes(b"")

    assert names_below(tmp_path) == ["film-\udcff.png"]
