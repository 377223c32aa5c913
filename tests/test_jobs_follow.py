"""Commands that follow a run go on when its storage was away for a moment."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.launch import THIS_MACHINE
from cluster.lease import Lease
from cluster.process_env import job_worker_environment
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.submit import submit
from jobs.queue.tasks import claim_run
from jobs.runs.outcomes import end
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
