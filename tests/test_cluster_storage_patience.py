"""Whoever watches a run waits for a storage that does not answer, says so once, and for a limited time."""

import errno
import os
from pathlib import Path

import pytest

from cluster.errors import LockHeld, StorageAway, StorageError, UnknownRun
from cluster.files import locked
from cluster.storage_marker import refuse_away
from cluster.storage_patience import StoragePatience


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "storage" / "runs"
    folder.mkdir(parents=True)
    return folder


def test_a_storage_that_comes_back_is_waited_for_and_said_once(runs: Path) -> None:
    away, waits, said = runs.rename(runs.with_name("away")), list[float](), list[str]()

    def come_back(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            away.rename(runs)

    patience = StoragePatience(said.append, pause=come_back)

    found = patience.call(lambda: refuse_away(runs) or "found")
    again = patience.call(lambda: "again")

    assert (found, again, len(waits), patience.pauses) == ("found", "again", 3, 1)
    assert said == [
        f"waiting for the storage, at most 600 s: the storage {runs.parent} cannot be read: {runs} does not exist; "
        "mount the share again, or look at its server",
        "the storage answers again",
    ]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ECONNRESET, errno.ETIMEDOUT])
def test_an_error_of_the_disk_or_its_server_is_waited_for(number: int) -> None:
    said, answers = list[str](), [OSError(number, os.strerror(number), "/s/state.json"), None]

    def read() -> str:
        if error := answers.pop(0):
            raise error
        return "found"

    assert StoragePatience(said.append, pause=lambda _: None).call(read) == "found"
    assert said[0] == (f"waiting for the storage, at most 600 s: /s/state.json cannot be read: {os.strerror(number)}")


@pytest.mark.parametrize("given", [{"seconds": 0.0}, {}])
def test_patience_ends_after_its_limit_and_at_the_time_of_the_caller(given: dict[str, float], runs: Path) -> None:
    runs.rmdir()
    waits, said = list[float](), list[str]()
    patience, until = StoragePatience(said.append, pause=waits.append, **given), float("inf") if given else 0.0

    with pytest.raises(StorageAway, match="does not exist"):
        patience.call(lambda: refuse_away(runs), until=until)

    assert (len(waits), len(said)) == ((1, 1) if given else (0, 0))


@pytest.mark.parametrize(
    "error", [UnknownRun("gone"), StorageError("damaged"), FileNotFoundError(2, "x"), PermissionError(13, "x")]
)
def test_an_answer_of_the_storage_is_passed_on_at_once(error: Exception) -> None:
    def read() -> None:
        raise error

    with pytest.raises(type(error)):
        StoragePatience(pytest.fail, pause=pytest.fail).call(read)


def test_a_lock_that_another_process_holds_is_an_answer_and_not_waited_for(tmp_path: Path) -> None:
    def read() -> None:
        with locked(tmp_path / ".lock", patience=0):
            pass

    with locked(tmp_path / ".lock"), pytest.raises(LockHeld, match="another process holds"):
        StoragePatience(pytest.fail, pause=pytest.fail).call(read)
