"""The demo for real: embedded Redis, job worker, two Ray Train workers, the published model, the report."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.run_paths import RunPaths
from jobs.runs.state import read_state
from tests.stack import arguments_of, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

START_SECONDS, TRAIN_SECONDS, END_SECONDS = 300, 600, 900


def test_a_demo_whose_job_worker_is_killed_in_mid_training_still_ends_well_and_leaves_nothing(tmp_path):
    storage = tmp_path / "storage"
    demo = _start_demo(storage, tmp_path)
    run = _first_run(storage)
    assert eventually(lambda: _phase(run) == "train", TRAIN_SECONDS), _phase(run)

    os.kill(_job_worker(demo.pid), signal.SIGKILL)
    out, err = demo.communicate(timeout=END_SECONDS)

    assert demo.returncode == 0, err
    state = read_state(run)
    assert (state.state, state.attempt) == ("succeeded", 2)
    assert float(re.search(r"test accuracy: (\S+)", out)[1]) >= 0.95
    assert Path(re.search(r"report: +(\S+)", out)[1]).is_file()
    assert "next:          nightshift demo --data FOLDER --split 70/15/15" in err
    assert f"nightshift predict {run.run_id} IMAGES --now" in err
    assert eventually(lambda: not _processes_with(str(storage))), _processes_with(str(storage))


def _start_demo(storage: Path, home: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "demo"],
        env={**os.environ, "NIGHTSHIFT_STORAGE": str(storage), "HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _first_run(storage: Path) -> RunPaths:
    assert eventually(lambda: any(storage.glob("runs/train-*/state.json")), START_SECONDS)
    return RunPaths(next(storage.glob("runs/train-*")))


def _phase(run: RunPaths) -> str:
    return json.loads(run.progress.read_text())["phase"] if run.progress.exists() else "none"


def _job_worker(demo: int) -> int:
    children = [int(pid) for pid in Path(f"/proc/{demo}/task/{demo}/children").read_text().split()]
    return next(pid for pid in children if arguments_of(pid)[1:5] == [b"-P", b"-m", b"jobs", b"worker"])


def _processes_with(mark: str) -> list[str]:
    """Return the command lines of processes that have `mark` in their environment or arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = int(entry.name) != os.getpid() and mark.encode() in (entry / "environ").read_bytes()
            if ours and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(" ".join(part.decode() for part in arguments_of(int(entry.name))))
        except OSError:
            continue
    return found
