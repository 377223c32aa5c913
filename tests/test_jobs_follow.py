"""Commands that follow a run go on when its storage was away for a moment."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import StorageAway, StorageError, UnknownRun
from cluster.files import is_unanswered
from cluster.launch import THIS_MACHINE
from cluster.lease import Lease
from cluster.process_env import job_worker_environment
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.submit import submit
from jobs.queue.tasks import claim_run
from jobs.runs import state as run_state
from jobs.runs.outcomes import end
from jobs.runs.request import JobRequest
from jobs.runs.state import find_to_follow
from tests.conftest import Say
from tests.stack import FakeSpec, eventually, finish

COMMAND = ("-P", "-m", "jobs")
PYTHON = """
import sys
import nightshift
from jobs.runs import state

def read_state(paths, read=state.read_state):
    print("looks", flush=True)
    return read(paths)

state.read_state = read_state
sys.exit(nightshift.wait(sys.argv[1])["state"] != "succeeded")
"""


@pytest.fixture
def lease(settings: Settings) -> Lease:
    run_id = submit(settings, FakeSpec())
    paths = RunPaths.of(settings.storage, run_id)
    claimed = claim_run(paths, "a job worker", THIS_MACHINE)
    assert claimed is not None
    paths.log.write_text("first line\n")
    return claimed.lease


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        (("wait",), "starting"),
        (("logs", "-f"), "first line"),
        (("cancel",), None),
        (("-c", PYTHON), "looks"),
    ],
)  # fmt: skip
def test_a_storage_that_is_away_for_a_moment_does_not_end_what_follows_a_run(
    settings: Settings, lease: Lease, tmp_path: Path, words: tuple[str, ...], shows: str | None
) -> None:
    paths, runs = lease.paths, settings.storage / "runs"
    said = tmp_path / "said"
    order = [sys.executable, *(() if words[0] == "-c" else COMMAND), *words, paths.run_id]
    with (
        said.open("w") as file,
        subprocess.Popen(order, env=job_worker_environment(settings), stdout=file, stderr=subprocess.STDOUT) as command,
    ):
        assert eventually(begun(paths, said, shows))
        runs.rename(tmp_path / "away")
        waited = eventually(lambda: "waiting for the storage" in said.read_text() or command.poll() is not None)
        (tmp_path / "away").rename(runs)
        assert eventually(lambda: "the storage answers again" in said.read_text() or command.poll() is not None)
        if words == ("cancel",):
            end(paths, lease, 3)
        else:
            finish(settings, paths.run_id, "succeeded")
        code = command.wait()

    text = said.read_text()
    assert (waited, code) == (True, 0), text
    assert text.count("waiting for the storage, at most 600 s") == text.count("the storage answers again") == 1


def begun(paths: RunPaths, said: Path, shows: str | None) -> Callable[[], bool]:
    """Return whether a command watches the run."""
    if shows is not None:
        return lambda: shows in said.read_text()
    return paths.stop.exists


@pytest.mark.parametrize(
    ("words", "python"),
    [
        (("wait",), ""),
        (("logs", "-f"), ""),
        (("-c",), PYTHON),
    ],
    ids=["wait", "logs -f", "nightshift.wait"],
)  # fmt: skip
@pytest.mark.parametrize("named", [True, False], ids=["by name", "by id"])
def test_what_begins_to_follow_a_run_while_the_share_is_not_mounted_waits_for_it(
    settings: Settings, tmp_path: Path, words: tuple[str, ...], python: str, *, named: bool
) -> None:
    run_id = submit(settings, FakeSpec(), JobRequest(name="night"))
    finish(settings, run_id, "succeeded")
    settings.storage.rename(tmp_path / "away")
    settings.storage.mkdir()  # the mount point
    said = tmp_path / "said"
    order = [sys.executable, *(("-c", python) if python else (*COMMAND, *words)), "night" if named else run_id]

    with (
        said.open("w") as file,
        subprocess.Popen(order, env=job_worker_environment(settings), stdout=file, stderr=subprocess.STDOUT) as command,
    ):
        waited = eventually(lambda: "waiting for the storage" in said.read_text() or command.poll() is not None)
        (tmp_path / "away").rename(settings.storage)
        code = command.wait()

    text = said.read_text()
    assert (waited, code) == (True, 0), text
    assert f"{settings.storage} has no runs at all; mount the shared storage there" in text
    assert text.count("waiting for the storage, at most 600 s") == text.count("the storage answers again") == 1


@pytest.mark.parametrize("words", [("wait",), ("logs", "-f")], ids=" ".join)
def test_a_storage_that_is_misspelt_or_was_never_used_is_refused_at_once(
    settings: Settings, say: Say, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    misspelt = settings.storage.with_name("strage")  # beside the storage
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(misspelt))

    code, out, err = say(*words, "night")

    cure = "mount the shared storage there, or correct NIGHTSHIFT_STORAGE"
    assert (code, out) == (1, "")
    assert err == f"Error: no run has the id or name 'night': {misspelt} has no runs at all; {cure}\n"


def test_a_storage_below_a_mount_point_without_its_share_is_away_until_it_is_mounted(
    settings: Settings, tmp_path: Path
) -> None:
    run_id = submit(settings, FakeSpec(), JobRequest(name="night"))
    share = tmp_path / "share"
    share.mkdir()

    with pytest.raises(StorageAway, match="has no runs at all"):
        find_to_follow(share / "team" / "storage", "night")
    (share / "team").mkdir()
    settings.storage.rename(share / "team" / "storage")

    assert find_to_follow(share / "team" / "storage", "night").run_id == run_id


def test_a_share_that_is_mounted_while_a_command_looks_for_a_run_is_looked_at_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = submit(settings, FakeSpec(), JobRequest(name="night"))
    away = tmp_path / "away"
    settings.storage.rename(away)

    def mount(_storage: Path, _text: str) -> None:
        monkeypatch.undo()
        away.rename(settings.storage)
        raise UnknownRun("no runs at all")

    monkeypatch.setattr(run_state, "find", mount)

    assert find_to_follow(settings.storage, "night").run_id == run_id


@pytest.mark.parametrize("words", [("wait",), ("logs", "-f")], ids=" ".join)
@pytest.mark.parametrize("text", ["nihgt", "train-20260101-000000-aaaaaa"], ids=["name", "id"])
def test_a_run_that_does_not_exist_is_refused_at_once(
    settings: Settings, say: Say, words: tuple[str, ...], text: str
) -> None:
    submit(settings, FakeSpec(), JobRequest(name="night"))

    code, out, err = say(*words, text)

    assert (code, out) == (1, "")
    assert err.startswith(f"Error: no run has the id or name {text!r}; ")


def test_a_name_whose_file_is_not_answered_is_not_an_unknown_name(settings: Settings) -> None:
    submit(settings, FakeSpec(), JobRequest(name="night"))
    file = settings.storage / "names" / "night.json"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # reading it gives EIO, as a file server that is away does

    with pytest.raises(StorageError, match=r"night\.json cannot be read") as error:
        find_to_follow(settings.storage, "night")

    assert is_unanswered(error.value)
