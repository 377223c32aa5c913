"""Who asks an attempt to stop, and which request stands when several do."""

import errno
import os
import threading

import pytest

from cluster.errors import StorageAway
from cluster.files import locked, read_json, write_json
from cluster.stop_request import StopRequest, StopWatcher


@pytest.mark.parametrize("earlier", ["drain", "window", "overtime"])
def test_a_cancel_replaces_every_other_reason(tmp_path, earlier):
    file = tmp_path / "stop.json"
    StopRequest(earlier, 1).publish(file)

    StopRequest("cancel", 1).publish(file)

    assert StopRequest.read(file, 1) == StopRequest("cancel", 1)


@pytest.mark.parametrize("later", ["drain", "window", "overtime", "cancel"])
def test_a_cancel_is_replaced_by_nothing(tmp_path, later):
    file = tmp_path / "stop.json"
    StopRequest("cancel", 1, now=True).publish(file)

    StopRequest(later, 1).publish(file)

    assert StopRequest.read(file, 1) == StopRequest("cancel", 1, now=True)


def test_a_cancel_may_become_urgent(tmp_path):
    file = tmp_path / "stop.json"
    StopRequest("cancel", 1).publish(file)

    StopRequest("cancel", 1, now=True).publish(file)

    assert read_json(file) == {"reason": "cancel", "attempt": 1, "now": True}


def test_a_request_that_waits_for_the_lock_sees_what_was_written_meanwhile(tmp_path):
    file = tmp_path / "stop.json"
    window = threading.Thread(target=lambda: StopRequest("window", 1).publish(file))
    with locked(tmp_path / ".stop.lock"):
        window.start()
        write_json(file, StopRequest("cancel", 1, now=True).to_json())

    window.join(30)

    assert StopRequest.read(file, 1) == StopRequest("cancel", 1, now=True)


def test_a_request_for_an_earlier_attempt_is_replaced(tmp_path):
    file = tmp_path / "stop.json"
    StopRequest("cancel", 1).publish(file)

    StopRequest("window", 2).publish(file)

    assert StopRequest.read(file, 2) == StopRequest("window", 2)


def test_a_request_without_an_attempt_is_meant_for_every_attempt(tmp_path):
    file = tmp_path / "stop.json"
    write_json(file, {"reason": "drain", "attempt": None})

    assert StopRequest.read(file, 7) == StopRequest("drain", None)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "3", '{"attempt": 1}', '{"reason": 3}', '{"reason": "cancel", "attempt": "1"}',
                '{"reason": "cancel", "attempt": 1, "seconds": "ten"}', '{"reason": "urgent", "attempt": 1}', "\x00"]
)  # fmt: skip
def test_a_file_of_another_shape_is_no_request(tmp_path, content):
    file = tmp_path / "stop.json"
    file.write_text(content)

    found = StopRequest.read(file, 1)

    assert found is None


def test_a_stop_once_seen_is_not_taken_back(tmp_path):
    file = tmp_path / "stop.json"
    watcher = StopWatcher(file, 1)
    before = watcher.reason()
    StopRequest("drain", 1).publish(file)
    seen = watcher.reason()
    file.unlink()

    after = watcher.reason()

    assert (before, seen, after) == (None, "drain", "drain")


def test_a_watcher_looks_at_the_storage_as_often_as_it_is_told(tmp_path):
    clock = [0.0]
    watcher = StopWatcher(tmp_path / "stop.json", 1, every_seconds=0.2, now=lambda: clock[0])
    found = [watcher.reason()]
    StopRequest("drain", 1).publish(tmp_path / "stop.json")

    for clock[0] in (0.1, 0.2):
        found.append(watcher.reason())

    assert found == [None, None, "drain"]


def test_a_folder_in_place_of_the_request_keeps_no_attempt_from_being_stopped(tmp_path):
    file = tmp_path / "stop.json"
    file.mkdir()
    (file / "notes.txt").write_text("kept")

    StopRequest("cancel", 1).publish(file)

    assert StopRequest.read(file, 1) == StopRequest("cancel", 1)
    (aside,) = tmp_path.glob("stop.json.folder-*")
    assert (aside / "notes.txt").read_text() == "kept"


def test_a_folder_in_place_of_the_request_is_renamed_where_the_request_is_removed(tmp_path):
    file = tmp_path / "stop.json"
    file.mkdir()

    StopRequest.remove(file)
    StopRequest.remove(file)

    assert [path.is_dir() for path in tmp_path.iterdir()] == [True]
    assert not file.exists()


def test_a_stop_request_that_cannot_be_read_is_not_taken_for_none_and_a_training_looks_again(tmp_path, monkeypatch):
    file = tmp_path / "stop.json"
    StopRequest("cancel", 1).publish(file)
    watcher = StopWatcher(file, 1)

    with monkeypatch.context() as failing:
        failing.setattr("cluster.files.read_content", unanswered)
        with pytest.raises(StorageAway, match="Stale file handle"):
            StopRequest.read(file, 1)
        meanwhile = watcher.reason()

    assert (meanwhile, watcher.reason()) == (None, "cancel")


def unanswered(path):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
