"""Time `nightshift --help` and `nightshift list`; the peer is a CLI that imports torch and ray."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.submit import new_run_id, publish
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests.bench.measure import Row, in_turn, row, seconds
from tests.stack import FakeSpec

RUNS = 100
PAIRS = 5
GOAL = 10.0
COMMAND = "python -m tests.bench command"
NIGHTSHIFT = str(Path(sys.executable).parent / "nightshift")


def run(*, pairs: int = PAIRS) -> list[Row]:
    """Measure both commands; each call is a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Settings(storage=Path(folder)).with_storage_ready().storage
        for _ in range(RUNS):
            write_run(storage)
        heavy = [sys.executable, "-m", "tests.bench.peers.heavy_cli", str(storage)]
        return [
            _row(storage, ["--help"], [*heavy, "--help"], what="nightshift --help", pairs=pairs, parity="both printed"),
            _row(
                storage, ["list"], [*heavy, "list"], what=f"nightshift list, {RUNS} runs", pairs=pairs,
                parity=f"both print the newest 50 of {RUNS}",
            ),
        ]  # fmt: skip


def write_run(storage: Path) -> None:
    """Write the files of a queued run as `submit` does, without a queue."""
    state = run_state.RunState(id=new_run_id("train"), kind="train", state="queued", created=run_state.now())
    publish(storage, RunPaths.of(storage, state.id), FakeSpec(), JobRequest(), state)


def _row(storage: Path, ours: list[str], peer: list[str], *, what: str, pairs: int, parity: str) -> Row:
    for order in ([NIGHTSHIFT, *ours], peer):
        _say(storage, order)  # warm-up: the page cache and compiled modules
    mine, theirs = in_turn(
        lambda: seconds(lambda: _say(storage, [NIGHTSHIFT, *ours])),
        lambda: seconds(lambda: _say(storage, peer)),
        pairs=pairs,
    )
    words = {"unit": "s", "goal": GOAL, "parity": parity, "command": COMMAND}
    return row(mine, theirs, more_is_better=False, what=what, beside="a CLI that imports torch and ray", **words)


def _say(storage: Path, order: list[str]) -> None:
    environment = {**os.environ, "NIGHTSHIFT_STORAGE": str(storage)}
    assert subprocess.run(order, check=True, stdout=subprocess.PIPE, env=environment).stdout
