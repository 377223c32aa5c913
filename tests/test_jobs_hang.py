"""A trainer that is alive and makes no progress is ended, with its stacks in the log, and retried."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.files import read_json, write_json
from cluster.launch import LocalLauncher
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import tasks
from jobs.queue.hang import ProgressWatch
from jobs.queue.submit import submit
from tests.stack import FakeSpec, processes_of, state_of

HANGING_TRAINER = """
import sys, threading
from pathlib import Path
from cluster import stack_dumps
from cluster.files import write_json

def waits_for_a_file_system_that_hangs():
    threading.Event().wait()

stack_dumps.enable()
write_json(Path(sys.argv[1]) / "progress.json", {"attempt": int(sys.argv[3]), "phase": "features", "done": 7})
waits_for_a_file_system_that_hangs()
"""


class Clock:
    """A monotonic clock that the test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Watched:
    """A watch with a limit of 60 seconds, its clock, and the progress file of attempt 1."""

    def __init__(self, folder: Path, **options: bool) -> None:
        self.paths, self.clock = RunPaths(folder), Clock()
        self.watch = ProgressWatch(self.paths, 1, 60.0, now=self.clock, **options)

    def says(self, **progress: object) -> None:
        write_json(self.paths.progress, {"attempt": 1, "phase": "train", "done": 0} | progress)

    def after(self, seconds: float) -> str | None:
        """Let time pass, with a check every five seconds, and return the first hang."""
        for _ in range(int(seconds / 5)):
            self.clock.seconds += 5
            if cause := self.watch.hang():
                return cause
        return None


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    found = Watched(tmp_path)
    found.watch.hang()
    return found


def test_a_trainer_that_never_writes_progress_hangs_while_it_starts(watched: Watched) -> None:
    assert watched.after(55) is None
    assert watched.after(10) == "no progress for 60 s in the phase 'starting'; the log has the stacks"


@pytest.mark.parametrize("phase", ["features", "train", "evaluate", "predict"])
def test_progress_that_stands_still_is_a_hang_in_any_phase(watched: Watched, phase: str) -> None:
    for done in range(20):
        watched.says(phase=phase, done=done)
        assert watched.after(30) is None

    assert watched.after(120) == f"no progress for 75 s in the phase '{phase}'; the log has the stacks"


def test_a_speed_that_changes_with_the_clock_is_no_progress(watched: Watched) -> None:
    causes = []
    for speed in range(20):
        watched.says(images_per_second=speed, eta_seconds=speed)
        causes.append(watched.after(5))

    assert any(causes)


def test_a_long_pause_is_a_hang_only_when_it_is_much_longer_than_those_before(watched: Watched) -> None:
    watched.says(done=1)
    watched.after(55)
    watched.says(done=2)

    assert watched.after(140) is None
    assert watched.after(60) is not None


def test_a_phase_may_say_that_it_needs_longer(watched: Watched) -> None:
    watched.says(hang_seconds=2600.0)

    assert watched.after(2590) is None
    assert watched.after(60) is not None


def test_a_search_that_waits_for_its_window_to_close_does_not_hang(watched: Watched) -> None:
    watched.says(phase="waiting")

    assert watched.after(8 * 3600) is None


def test_the_progress_of_a_trial_is_progress_of_its_search(watched: Watched) -> None:
    watched.says(trials={"running": 1})
    watched.paths.trials.touch()
    for folder in ("trial-000001", "trial-000002/repeat-0"):
        trial = watched.paths.checkpoints / folder
        trial.mkdir(parents=True)
        for done in range(4):
            write_json(trial / "progress.json", {"attempt": 1, "phase": "train", "done": done})
            assert watched.after(50) is None

    assert watched.after(240) is not None


def test_the_progress_of_an_older_attempt_does_not_count(watched: Watched) -> None:
    causes = []
    for done in range(14):
        watched.says(attempt=0, done=done)
        causes.append(watched.after(5))

    assert any(causes)


def test_a_job_worker_that_was_stopped_itself_does_not_blame_the_trainer(watched: Watched) -> None:
    watched.says()
    watched.after(10)
    watched.clock.seconds += 3600

    assert watched.watch.hang() is None


def test_a_trainer_on_a_cluster_may_wait_longer_for_machines(tmp_path: Path) -> None:
    watched = Watched(tmp_path, on_cluster=True)
    watched.watch.hang()

    assert watched.after(355) is None
    assert watched.after(10) is not None


def test_a_trainer_on_a_cluster_leaves_no_stacks_in_the_log(tmp_path: Path) -> None:
    watched = Watched(tmp_path, on_cluster=True)
    watched.says()
    watched.watch.hang()

    assert watched.after(65) == "no progress for 60 s in the phase 'train'"


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_storage_that_does_not_answer_is_no_hang(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    watched.says()
    watched.after(30)

    with monkeypatch.context() as away:
        away.setattr(RunPaths, "progress_of_trials", raising(OSError(number, os.strerror(number))))
        assert watched.after(3600) is None

    assert watched.after(25) is None
    assert watched.after(15) is not None


def test_what_libraries_log_while_a_trainer_starts_is_progress(watched: Watched) -> None:
    for _ in range(5):
        with watched.paths.log.open("a") as log:
            log.write("waiting for resources\n")
        assert watched.after(55) is None


def test_damaged_progress_is_no_progress_and_no_error(watched: Watched) -> None:
    watched.paths.progress.write_text("[1")

    assert watched.after(70) is not None


def raising(error: Exception) -> Callable[[object], None]:
    def fail(_: object) -> None:
        raise error

    return fail


class HangsOnceItWorks(ProgressWatch):
    """Reports a hang as soon as the trainer has written progress: the test does not wait for a limit."""

    def hang(self) -> str | None:
        return "no progress for 600 s in the phase 'features'" if self.paths.progress.exists() else None


def test_a_hung_trainer_is_ended_with_its_stacks_in_the_log_and_its_run_is_queued_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "ProgressWatch", HangsOnceItWorks)
    launcher = LocalLauncher((sys.executable, "-c", HANGING_TRAINER), folder=Path(__file__).parent.parent)
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))

    tasks.run(settings, launcher, paths.run_id, job_worker="w")

    state = state_of(settings.storage, paths.run_id)
    assert (state.state, state.losses) == ("queued", 1)
    assert state.why == (
        "attempt 1 was lost (no progress for 600 s in the phase 'features'); the next goes on from its checkpoint"
    )
    assert "waits_for_a_file_system_that_hangs" in paths.log.read_text()
    assert processes_of(paths.run_id) == []
    assert read_json(paths.progress)["done"] == 7


def test_progress_that_cannot_be_read_is_no_hang(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.says()
    watched.after(30)

    with monkeypatch.context() as away:
        away.setattr("cluster.files.read_content", raising(OSError(errno.EIO, os.strerror(errno.EIO))))
        assert watched.after(3600) is None

    assert watched.after(25) is None
    assert watched.after(15) is not None
