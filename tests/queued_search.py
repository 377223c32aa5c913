"""A search that waits in the queue, whose trials a test plays."""

from pathlib import Path

import pytest

from cluster.files import append_line
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.runs import state as run_state
from tests.conftest import Say


@pytest.fixture
def search(say: Say, settings: Settings, digits_shards: Path) -> RunPaths:
    """A search that waits in the queue."""
    code, out, err = say("search", str(digits_shards), "--weights", "none", "--trials", "4", "--metric", "auroc")
    assert code == 0, err
    return RunPaths.of(settings.storage, out.strip())


def play(paths: RunPaths, *values: float) -> None:
    """Write a journal of finished trials with these values."""
    for trial, value in enumerate(values):
        config = {"lr": 10.0 ** -(trial + 2), "dropout": 0.1 * trial, "head_width": 128, "batch_size": 32}
        append_line(paths.trials, {"event": "started", "trial": trial, "config": config})
        append_line(
            paths.trials, {"event": "epoch", "trial": trial, "epoch": 1, "value": value, "seconds": 9.0 - trial}
        )
        append_line(paths.trials, {"event": "finished", "trial": trial, "why": "epochs"})


def end(paths: RunPaths, state: str = "succeeded") -> None:
    with run_state.changing(paths) as found:
        run_state.write_state(paths, found.with_state(state))
