"""The index of runs: equal to the folders, whatever happens to these, to the index's file, and to the clock."""

import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.files import locked, write_json
from cluster.mounts import Mount
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.runs import deletion, index_file, run_index
from jobs.runs import state as run_state
from jobs.runs.index_file import path_of
from jobs.runs.labels import change_labels
from jobs.runs.run_filter import Filter
from jobs.runs.run_index import RunIndex
from jobs.runs.state import RunState, now, write_state
from tests.conftest import Say


@pytest.fixture(autouse=True)
def index_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index that is written after each look, of files that may have changed just before."""
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "local"))
    for name in ("SETTLED_SECONDS", "SETTLED_SECONDS_ELSEWHERE", "READ_WITHOUT_FILE", "READS_BEFORE_SAVE"):
        monkeypatch.setattr(run_index, name, 0)
    return tmp_path / "local" / f"nightshift-runs-{os.geteuid()}"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose `state.json` is read."""
    found, original = list[str](), run_state.read_state
    monkeypatch.setattr(run_state, "read_state", lambda paths: found.append(paths.run_id) or original(paths))
    return found


def make(storage: Path, number: int, **changes: object) -> RunPaths:
    paths = RunPaths.of(storage, f"train-20261126-{120000 + number}-abcdef")
    paths.folder.mkdir(exist_ok=True)
    values = {"kind": "train", "state": "succeeded", "created": now(), **changes}
    write_json(paths.state, RunState(id=paths.run_id, **values).to_json(), durable=False)
    return paths


def filled(storage: Path) -> RunIndex:
    """An index that has read all runs and has written its file."""
    index = RunIndex(storage)
    index.fill(threading.Event())
    return index


def states(storage: Path, before: str | None = None) -> list[RunState]:
    """The state of every run, newest first, read without an index; those that are listed after `before`."""
    key = run_state.age_key
    ids = [one for one in run_state.all_ids(storage) if before is None or key(one) < key(before)]
    found = [run_state.state_or_damaged(storage, run_id) for run_id in reversed(ids)]
    return [state for state in found if state is not None]


def read_all(storage: Path, wanted: Filter) -> list[RunState]:
    """What the index must yield."""
    return list(filter(wanted.matches, itertools.takewhile(wanted.is_recent, states(storage))))


def change_state(paths: RunPaths) -> None:
    with run_state.changing(paths) as found:
        write_state(paths, found.with_state("queued"))


def restore_old_file(paths: RunPaths) -> None:
    """Another content of the same length at the same time, as a restored backup has."""
    before, text = paths.state.stat(), paths.state.read_text().replace('"succeeded"', '"cancelled"')
    write_json(paths.state, {})
    paths.state.write_text(text)
    os.utime(paths.state, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[RunPaths], object]] = {
    "another state": change_state,
    "a tag": lambda paths: change_labels(paths, add=["new"]),
    "damaged": lambda paths: paths.state.write_text("{"),
    "without a state": lambda paths: paths.state.unlink(),
    "a folder in place of the state": lambda paths: (paths.state.unlink(), paths.state.mkdir()),
    "deleted": lambda paths: shutil.rmtree(paths.folder),
    "one more": lambda paths: make(paths.storage, 9),
    "replaced by another with the same time": restore_old_file,
}


@pytest.mark.parametrize("type_", ["ext4", "nfs4"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_index_follows_every_change_of_the_folders(
    storage: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[RunPaths], object], type_: str
) -> None:
    monkeypatch.setattr(run_index, "mount_of", lambda _: Mount(type=type_, options=()))
    runs = [make(storage, number) for number in range(3)]
    index = filled(storage)

    change(runs[1])

    for found in (index, RunIndex(storage)):
        assert list(found.states()) == states(storage)
        before = runs[1].run_id
        assert list(found.states(before=before)) == states(storage, before)


ACTS: dict[str, Callable[[Path, int], object]] = {
    "succeed": make,
    "retry": lambda storage, number: make(storage, number, state="queued", name="again"),
    "tag": lambda storage, number: make(storage, number, state="failed", tags=("chest",), owner="mira"),
    "damage": lambda storage, number: make(storage, number).state.write_text("{"),
    "lose the state": lambda storage, number: make(storage, number).state.unlink(),
    "delete": lambda storage, number: shutil.rmtree(deletion.hide(make(storage, number))),
}
FILTERS = [Filter(), Filter(state="failed"), Filter(tags=("chest",), owner="mira"), Filter(name="ag*"),
           Filter(state="damaged"), Filter(since_seconds=3600.0, kind="train")]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(list(ACTS)), st.integers(0, 3)), min_size=1, max_size=8))
@settings(max_examples=12)
def test_after_any_acts_each_filter_yields_what_reading_all_runs_yields(acts: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Settings(storage=Path(folder)).with_storage_ready().storage
        page, moments = RunIndex(storage), itertools.count(10**18, 10**9)
        for act, number in acts:
            ACTS[act](storage, number)
            file = RunPaths.of(storage, f"train-20261126-{120000 + number}-abcdef").state
            if file.exists():  # no two files of one time: as with seconds between the acts
                os.utime(file, ns=(moment := next(moments), moment))

            for wanted in FILTERS:
                command = RunIndex(storage)
                assert list(command.states(wanted)) == read_all(storage, wanted)
                assert list(page.states(wanted)) == read_all(storage, wanted)
                command.save()


def test_a_run_that_was_damaged_and_mended_is_shown(storage: Path) -> None:
    paths = make(storage, 1)
    good = paths.state.read_text()
    paths.state.write_text("{")
    index = filled(storage)
    damaged = [state.state for state in index.states()]

    paths.state.write_text(good)

    assert damaged == ["damaged"]
    assert list(index.states()) == states(storage)


def test_a_state_that_has_not_changed_is_read_once_by_all_processes(storage: Path, read: list[str]) -> None:
    runs = [make(storage, number, tags=("a", "b"), metric=("auroc", 0.5), note="ä\n") for number in range(3)]
    index = filled(storage)
    change_labels(runs[0], add=["new"])
    expected = states(storage)
    read.clear()

    shown = [list(index.states()) for _ in range(3)]
    index.save()
    later = list(RunIndex(storage).states())

    assert [*shown, later] == [expected] * 4
    assert read == [runs[0].run_id]


def test_a_file_that_was_read_within_the_tick_of_its_change_is_read_again(
    storage: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    monkeypatch.setattr(run_index, "SETTLED_SECONDS", 60.0)
    monkeypatch.setattr(run_index, "mount_of", lambda _: Mount(type="ext4", options=()))
    paths = make(storage, 1)
    stamp = [paths.state.stat().st_mtime_ns, 0, 9, 9]  # both contents have it, as in one tick of a coarse clock
    monkeypatch.setattr(RunIndex, "_stamp", lambda *_: stamp)
    index = filled(storage)

    change_state(paths)

    assert [state.state for state in index.states()] == ["queued"]
    assert [state.state for state in RunIndex(storage).states()] == ["queued"]


@pytest.mark.parametrize("content", [b"", b"\n", b"0" * 64 + b"\n[]", b"\xff" * 200])
def test_a_damaged_index_is_made_anew(storage: Path, read: list[str], content: bytes, caplog) -> None:
    make(storage, 1, note="one")
    filled(storage)
    file = path_of(storage)
    good = file.read_bytes()
    file.write_bytes(content)
    read.clear()

    filled(storage)

    assert len(read) == 1
    assert file.read_bytes() == good
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


@pytest.mark.parametrize("position", [0, 70, -3])
def test_no_byte_of_the_index_can_change_unnoticed(storage: Path, read: list[str], position: int) -> None:
    make(storage, 1, note="one")
    filled(storage)
    changed = bytearray(path_of(storage).read_bytes())
    changed[position] ^= 1
    path_of(storage).write_bytes(changed)
    read.clear()

    found = list(RunIndex(storage).states())

    assert found == states(storage)
    assert len(read) == 2  # one of them by the line above


def test_an_index_of_another_version_or_storage_is_not_used(
    storage: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make(storage, 1)
    filled(storage)
    other = Settings(storage=tmp_path / "other").with_storage_ready().storage
    path_of(other).write_bytes(path_of(storage).read_bytes())
    read.clear()

    assert index_file.read_rows(other) == {}
    monkeypatch.setattr(index_file, "FORMAT", "of another version")
    assert list(RunIndex(storage).states()) != []
    assert len(read) == 1


def test_only_its_user_can_read_the_index(storage: Path, index_folder: Path) -> None:
    make(storage, 1, note="of a patient")
    own = os.umask(0)
    try:
        filled(storage)
    finally:
        os.umask(own)

    assert index_folder.stat().st_mode & 0o777 == 0o700
    assert path_of(storage).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_a_folder_that_is_not_private_is_not_used(storage: Path, index_folder: Path, tmp_path: Path, trap: str) -> None:
    make(storage, 1)
    (tmp_path / "theirs").mkdir(mode=0o700)
    if trap == "link":
        index_folder.symlink_to(tmp_path / "theirs")
    elif trap == "open":
        index_folder.mkdir()
        index_folder.chmod(0o777)
    else:
        index_folder.touch()

    found = list(filled(storage).states())

    assert found == states(storage)
    assert not path_of(storage).exists()
    assert list((tmp_path / "theirs").iterdir()) == []


def test_an_index_that_another_process_is_writing_is_left_to_it(storage: Path, index_folder: Path) -> None:
    make(storage, 1)
    index_folder.mkdir(mode=0o700)

    with locked(path_of(storage).with_suffix(".lock")):
        found = list(filled(storage).states())

    assert found == states(storage)
    assert not path_of(storage).exists()


def test_a_deleted_run_leaves_the_file_when_it_is_written_next(storage: Path) -> None:
    runs = [make(storage, number, note=f"note {number}") for number in range(3)]
    filled(storage)

    deletion.hide(runs[0])
    make(storage, 3)
    filled(storage)

    assert b"note 0" not in path_of(storage).read_bytes()
    assert b"note 1" in path_of(storage).read_bytes()


def test_without_a_folder_for_temporary_files_all_runs_are_read(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(storage, 1)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)

    found = list(filled(storage).states())

    assert found == states(storage)


def test_a_small_storage_has_no_file(storage: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_index, "READS_BEFORE_SAVE", 500)
    make(storage, 1)

    filled(storage)

    assert not index_folder.exists()


def test_the_command_reads_and_writes_the_index(
    say: Say, storage: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make(storage, number, tags=("chest",) if number == 1 else ())
    monkeypatch.setattr(run_index, "LONG_READ", 3)
    first = say("list", "--tag", "chest", "--json")
    read.clear()

    second = say("list", "--tag", "chest", "--json")

    assert first == (0, second[1], "reading 3 runs; the next list reads only those that change\n")
    assert second[::2] == (0, "")
    assert '"train-20261126-120001-abcdef"' in second[1]
    assert read == []
