"""The launcher on this machine: where the trainer runs and what it may import."""

import sys
from pathlib import Path

import pytest

from cluster.launch import TRAINER, LocalLauncher
from cluster.ray_jobs import TRAINER as RAY_TRAINER
from cluster.run_paths import RunPaths


def run_paths(storage: Path) -> RunPaths:
    paths = RunPaths.of(storage, "train-20261123-203000-a1b2c3")
    paths.folder.mkdir()
    return paths


def test_the_working_directory_of_a_trainer_is_the_storage(storage, tmp_path, monkeypatch):
    paths = run_paths(storage)
    monkeypatch.chdir(tmp_path)
    shows_folder = (sys.executable, "-P", "-c", "import os; print(os.getcwd())")

    code = LocalLauncher(shows_folder).start(paths, 1).wait(600)

    assert code == 0
    assert paths.log.read_text() == f"{storage.resolve()}\n"


def test_no_trainer_imports_from_its_working_directory():
    assert (sys.executable, "-P", "-m", "trainer") == TRAINER
    assert RAY_TRAINER == ("python", "-P", "-m", "trainer")


@pytest.mark.parametrize(
    ("users", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing set", "spins", "policy"],
)
def test_threads_of_a_trainer_leave_the_cpu_to_others_unless_told_otherwise(users, spins, storage, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    paths = run_paths(storage)
    shows_variable = (sys.executable, "-P", "-c", "import os; print(os.environ.get('GOMP_SPINCOUNT'))")

    code = LocalLauncher(shows_variable).start(paths, 1).wait(600)

    assert code == 0
    assert paths.log.read_text() == f"{spins}\n"
