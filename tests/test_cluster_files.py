"""Atomic writes: a reader sees the old content or the new one, and a failed write leaves nothing behind."""

import os
import signal
import stat
import threading

import pytest

from cluster.errors import LockHeld, StorageError
from cluster.files import (
    atomic_folder,
    atomic_write,
    copy_atomically,
    is_damage,
    lock_waits_within,
    locked,
    read_json,
    remove_drafts,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_draft(tmp_path):
    target = tmp_path / "state.json"
    write_json(target, {"step": 1})

    def fill_the_disk():
        with atomic_write(target) as draft:
            draft.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_the_disk()

    assert read_json(target) == {"step": 1}
    assert names(tmp_path) == ["state.json"]


def test_a_file_with_a_mode_is_private_while_it_is_still_a_draft(tmp_path):
    target = tmp_path / "url"

    with atomic_write(target, mode=0o600) as draft:
        of_draft = stat.S_IMODE(draft.stat().st_mode)
    write_text(tmp_path / "conf", "requirepass x", mode=0o600)

    assert of_draft == 0o600
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "conf").stat().st_mode) == 0o600


def test_writers_of_one_file_never_share_a_draft(tmp_path):
    target, drafts = tmp_path / "progress.json", []
    both_open = threading.Barrier(2)

    def write():
        with atomic_write(target) as draft:
            drafts.append(draft)
            both_open.wait()
            draft.write_text(draft.name)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(drafts)) == 2
    assert names(tmp_path) == ["progress.json"]
    assert target.read_text() in {draft.name for draft in drafts}


def test_a_folder_replaces_the_one_before_it(tmp_path):
    target = tmp_path / "best"
    for content in ("old", "new"):
        with atomic_folder(target) as draft:
            (draft / f"{content}.txt").write_text(content)

    assert names(tmp_path) == ["best"]
    assert names(target) == ["new.txt"]


def test_a_folder_that_fails_keeps_the_one_before_it(tmp_path):
    target = tmp_path / "best"
    with atomic_folder(target) as draft:
        (draft / "model").write_text("good")

    def diverge():
        with atomic_folder(target) as draft:
            (draft / "model").write_text("bad")
            raise ValueError("NaN")

    with pytest.raises(ValueError, match="NaN"):
        diverge()

    assert names(tmp_path) == ["best"]
    assert (target / "model").read_text() == "good"


def test_drafts_of_killed_processes_are_removed_and_other_files_stay(tmp_path):
    target = tmp_path / "model.pth"
    leftovers = [".model.pth.part", ".model.pth.17", ".model.pth.17.140213", ".model.pth.17.0a1b2c3d"]
    for name in leftovers:
        (tmp_path / name).touch()
    (tmp_path / ".model.pth.17.0a1b2c3d.old").mkdir()
    for name in ("model.pth", ".model.pth.lock", ".model.pth2.17"):
        (tmp_path / name).touch()

    remove_drafts(target)

    assert names(tmp_path) == [".model.pth.lock", ".model.pth2.17", "model.pth"]


def test_a_killed_write_leaves_a_draft_that_is_recognised(tmp_path):
    target = tmp_path / "model.pth"
    writer = os.fork()
    if writer == 0:
        with atomic_write(target):
            os._exit(0)
    os.waitpid(writer, 0)
    assert len(names(tmp_path)) == 1

    remove_drafts(target)

    assert names(tmp_path) == []


def test_a_copy_that_cannot_be_written_names_the_target_and_the_source(tmp_path):
    source, target = tmp_path / "model.onnx", tmp_path / "absent" / "model.onnx"
    source.write_bytes(b"model")

    with pytest.raises(StorageError) as caught:
        copy_atomically(source, target)

    reason = "No such file or directory"
    assert str(caught.value) == f"{target} cannot be written ({reason}); the result is in {source}"


def test_a_lock_that_a_stopped_process_holds_is_reported_and_not_waited_for(tmp_path):
    lock = tmp_path / ".lock"
    holder = os.fork()
    if holder == 0:
        with locked(lock):
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(holder, os.WUNTRACED)

    with pytest.raises(StorageError) as caught, locked(lock, patience=0.05):
        pass
    os.kill(holder, signal.SIGCONT)
    with locked(lock, patience=60):
        os.waitpid(holder, 0)

    assert str(caught.value) == (
        f"another process has held {lock} for 0.05 s; it may be stopped: "
        f"find it with `lslocks` or `fuser {lock}`, then continue or end it"
    )


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop of links", "dangling link"])
def test_what_is_no_file_is_damage_and_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "state.json"
    make = {
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "loop of links": lambda: path.symlink_to(path),
        "dangling link": lambda: path.symlink_to(tmp_path / "gone"),
    }
    make[kind]()

    with pytest.raises(StorageError) as caught:
        read_json(path)

    assert str(path) in str(caught.value)
    assert is_damage(caught.value)


def test_several_locks_are_waited_for_within_one_limit_also_one_without_a_limit_of_its_own(tmp_path):
    with locked(tmp_path / "a"), locked(tmp_path / "b"), lock_waits_within(0.05):
        for name, patience in (("a", None), ("b", 600.0)):
            with pytest.raises(LockHeld) as caught, locked(tmp_path / name, patience=patience):
                pass

            # without the seconds, which differ each time: the same fault has the same text
            assert str(caught.value).startswith(f"another process holds {tmp_path / name}; it may be stopped: ")
