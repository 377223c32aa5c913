"""The states that the page keeps in memory: equal to those of the folders, whatever happens to these."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.files import write_json
from cluster.run_paths import RunPaths
from jobs.runs import state as run_state
from jobs.runs.labels import change_labels
from jobs.runs.state import RunState, now, write_state
from jobs.web.run_index import RunIndex


def make(storage: Path, number: int, **changes: object) -> RunPaths:
    paths = RunPaths.of(storage, f"train-20261126-{120000 + number}-abcdef")
    paths.folder.mkdir(exist_ok=True)
    values = {"kind": "train", "state": "succeeded", "created": now(), **changes}
    write_state(paths, RunState(id=paths.run_id, **values))
    return paths


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
    "deleted": lambda paths: shutil.rmtree(paths.folder),
    "one more": lambda paths: make(paths.storage, 9),
    "replaced by another with the same time": restore_old_file,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_index_follows_every_change_of_the_folders(storage: Path, change: Callable[[RunPaths], object]) -> None:
    runs = [make(storage, number) for number in range(3)]
    index = RunIndex(storage)
    index.fill(threading.Event())

    change(runs[1])

    assert list(index.states()) == list(run_state.states(storage))
    assert list(index.states(before=runs[1].run_id)) == list(run_state.states(storage, before=runs[1].run_id))


def test_a_run_that_was_damaged_and_mended_is_shown(storage: Path) -> None:
    paths = make(storage, 1)
    good = paths.state.read_text()
    paths.state.write_text("{")
    index = RunIndex(storage)
    damaged = [state.state for state in index.states()]

    paths.state.write_text(good)

    assert damaged == ["damaged"]
    assert list(index.states()) == list(run_state.states(storage))


def test_a_state_that_has_not_changed_is_read_once(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make(storage, number) for number in range(3)]
    index = RunIndex(storage)
    index.fill(threading.Event())
    change_labels(runs[0], add=["new"])
    read, original = list[str](), run_state.read_state
    monkeypatch.setattr(run_state, "read_state", lambda paths: read.append(paths.run_id) or original(paths))

    shown = [len(list(index.states())) for _ in range(3)]

    assert shown == [3, 3, 3]
    assert read == [runs[0].run_id]
