"""`python -m tests.gpu.whole_runs`: it says of each run how it ended, and goes on after one that hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.launch import LocalLauncher
from tests.gpu.whole_runs import RUNS, run_whole
from tests.trained import new_run, train_spec

ROOT = Path(__file__).parent.parent
SUCCEEDS = """
import pathlib, sys
print("2026-11-27 12:00:00,000 INFO nothing special")
print("2026-11-27 12:00:00,000 WARNING no step is a CUDA graph")
(pathlib.Path(sys.argv[1]) / "result.json").write_text('{"timing": {"start": 1.5, "training": 2.0}}')
"""


def ended(folder, code, limit_seconds=600.0):
    """Return whether a trainer that runs `code` succeeded."""
    launcher = LocalLauncher((sys.executable, "-c", code))
    return run_whole(launcher, new_run(folder, train_spec(Path("x"))), limit_seconds)


def test_a_run_that_succeeds_has_its_times_and_its_warnings(tmp_path, capsys):
    succeeded = ended(tmp_path, SUCCEEDS)

    line, *warnings = capsys.readouterr().out.splitlines()
    assert succeeded
    assert line.startswith("run: succeeded after ")
    assert line.endswith(" s: start 1.5 s, training 2.0 s")
    assert warnings == ["    2026-11-27 12:00:00,000 WARNING no step is a CUDA graph"]


def test_a_run_that_fails_has_the_end_of_its_log(tmp_path, capsys):
    succeeded = ended(tmp_path, "import sys; print('the reason'); sys.exit(7)")

    assert not succeeded
    assert capsys.readouterr().out.splitlines() == [
        "run: ended with exit code 7; the end of its log:",
        "    the reason",
    ]


def test_a_run_that_hangs_is_ended_and_named(tmp_path, capsys):
    succeeded = ended(tmp_path, "import time; time.sleep(6000)", limit_seconds=0.5)

    assert not succeeded
    assert capsys.readouterr().out.splitlines()[0] == "run: did not end within 0.5 s; the end of its log:"


def test_there_are_runs_of_all_kinds_that_use_gpus_and_two_beside_them():
    specs = {name: spec("shards", Path("runs")) for name, spec in RUNS}

    assert {spec.kind for spec in specs.values()} == {"train", "evaluate", "predict", "search"}
    assert [name for name, spec in specs.items() if spec.gpus_per_worker == 0] == [
        "folds-on-cpus",
        "head-search-on-cpus",
    ]


@pytest.mark.slow
def test_whole_runs_succeed_without_a_gpu_too():
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.whole_runs", "--limit", "600", "cold-head", "folds-on-cpus"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "2 of 2 runs succeeded"
