"""Who owns a run: numbers that only one process can hold, and fences that keep the dead out."""

import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import LeaseLost, StorageAway
from cluster.lease import Lease, heartbeat_changes, heartbeat_is_ours, heartbeat_of, latest_attempt, revoke
from cluster.run_paths import RunPaths


@pytest.fixture
def paths(storage: Path) -> RunPaths:
    found = RunPaths.of(storage, "train-20261123-020000-abc123")
    found.folder.mkdir()
    return found


def claims(paths: RunPaths) -> bool:
    try:
        Lease.claim(paths, after=0)
    except LeaseLost:
        return False
    return True


def test_of_eight_processes_one_gets_the_attempt(paths: RunPaths) -> None:
    with ProcessPoolExecutor(8) as pool:
        got = list(pool.map(claims, [paths] * 8))

    assert got.count(True) == 1
    assert latest_attempt(paths) == 1


def test_a_newer_attempt_fences_the_older_off(paths: RunPaths) -> None:
    older = Lease.claim(paths, after=0)
    older.check()

    Lease.claim(paths, after=1).check()

    with pytest.raises(LeaseLost, match="attempt 2 has taken over from attempt 1"):
        older.check()


def test_an_attempt_that_was_declared_dead_stays_fenced_off_though_it_beats(paths: RunPaths) -> None:
    lease = Lease.claim(paths, after=0)

    revoke(paths, 1)
    lease.heartbeat()

    with pytest.raises(LeaseLost, match="attempt 1 was marked dead"):
        lease.check()


def test_nobody_joins_an_attempt_that_was_never_claimed(paths: RunPaths) -> None:
    with pytest.raises(LeaseLost, match="attempt 1 was never claimed"):
        Lease.join(paths, 1)


def test_a_storage_that_is_away_is_not_taken_for_a_run_that_was_deleted(paths: RunPaths, tmp_path: Path) -> None:
    lease = Lease.claim(paths, after=0)
    away = paths.storage.rename(tmp_path / "away")
    paths.storage.mkdir()  # the folder that it was mounted at

    said = []
    for use in (lease.check, lambda: Lease.join(paths, 1), lambda: lease.append_line(paths.metrics, {"epoch": 1})):
        with pytest.raises(StorageAway) as caught:
            use()
        said.append(str(caught.value))
    written = list(paths.storage.iterdir())
    paths.storage.rmdir()
    away.rename(paths.storage)

    cure = "mount the share again, or look at its server"
    reason = f"the storage {paths.storage} cannot be read: {paths.storage}/runs does not exist; {cure}"
    assert (said, written) == ([reason] * 3, [])
    lease.check()


def test_a_run_that_was_deleted_is_said_to_be_deleted(paths: RunPaths) -> None:
    lease = Lease.claim(paths, after=0)
    shutil.rmtree(paths.folder)

    with pytest.raises(LeaseLost, match="the run was deleted while attempt 1 was running"):
        lease.check()


def test_life_is_a_beat_that_changes_while_one_watches(paths: RunPaths) -> None:
    lease = Lease.claim(paths, after=0)

    dead = heartbeat_changes(paths, patience=0.2)
    alive = heartbeat_changes(paths, patience=1.0, pause=lambda _: lease.heartbeat())

    assert not dead
    assert alive
    assert heartbeat_of(paths) == (1, 1)
    assert heartbeat_is_ours(paths, 1)
