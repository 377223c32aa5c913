"""The marker file of a storage, and probe files that processes with the same id do not share."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster import health
from cluster.errors import StorageError
from cluster.files import read_json
from cluster.health import check_storage
from cluster.settings import Settings
from cluster.storage_marker import MARKER, ensure_storage_id, read_storage_id


def test_a_storage_keeps_its_id(storage):
    before = read_storage_id(storage)

    first, second = ensure_storage_id(storage), ensure_storage_id(storage)

    assert before is None
    assert first == second == read_storage_id(storage) == read_json(storage / MARKER)["id"]


def test_several_first_users_agree_on_one_id(storage):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: ensure_storage_id(storage), range(8)))

    assert len(found) == 1


@pytest.mark.parametrize("content", ["[]", "{}", '{"id": 7}', "torn"])
def test_a_damaged_marker_is_named(storage, content):
    (storage / MARKER).write_text(content)

    with pytest.raises(StorageError, match=MARKER):
        read_storage_id(storage)


def test_processes_with_the_same_id_do_not_disturb_each_other(storage, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(health, "FREE_BYTES_LEAST", 0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Settings(storage=storage).with_storage_ready(), range(400)))
        checks = list(pool.map(lambda _: check_storage(storage), range(8)))

    assert [check for each in checks for check in each if not check.ok] == []
    assert [path.name for path in storage.iterdir()] == ["runs"]
    assert list((storage / "runs").iterdir()) == []


def test_doctor_writes_no_folder_of_runs_into_an_empty_folder(tmp_path):
    check_storage(tmp_path)

    assert list(tmp_path.iterdir()) == []
