"""How attempts end, with a real worker, a real Redis and a fake trainer."""

import errno
import itertools
import os
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster import files
from cluster.errors import LeaseLost, StorageError
from cluster.exit_codes import ExitCode
from cluster.files import write_json
from cluster.launch import THIS_MACHINE
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.stop_request import StopRequest
from jobs.queue import actions, tasks
from jobs.queue.hang import ProgressWatch
from jobs.queue.stack import Stack
from jobs.queue.submit import submit
from jobs.queue.tasks import _AttemptWatcher, claim_run
from jobs.runs.outcomes import end, mark_dead
from jobs.runs.request import JobRequest
from tests.stack import FakeSpec, processes_of, reaches, start_run, state_of, trainer_of


def test_a_run_that_succeeds_has_a_result_and_its_metric(stack: Stack, settings: Settings) -> None:
    run_id = submit(settings, FakeSpec(steps=2))

    state = reaches(settings.storage, run_id, "succeeded")

    assert state.metric == ("auroc", 0.75)
    assert (state.attempt, state.losses, state.why) == (1, 0, None)
    assert RunPaths.of(settings.storage, run_id).result.exists()


def test_a_run_that_fails_says_why_in_one_line_and_is_not_repeated(stack: Stack, settings: Settings) -> None:
    run_id = submit(settings, FakeSpec(ending="fail"))

    state = reaches(settings.storage, run_id, "failed")

    assert state.why == "the images are all black"
    assert state.attempt == 1


def test_a_trainer_that_ends_without_a_result_has_failed(stack: Stack, settings: Settings) -> None:
    run_id = submit(settings, FakeSpec(ending="nothing"))

    state = reaches(settings.storage, run_id, "failed")

    assert state.why == "the trainer ended without a result; `nightshift logs` shows what it said"


def test_a_run_that_kills_its_process_is_lost_when_its_retries_are_spent(stack: Stack, settings: Settings) -> None:
    run_id = submit(settings, FakeSpec(ending="crash"), JobRequest(retries=2))

    state = reaches(settings.storage, run_id, "lost")

    assert (state.attempt, state.losses) == (3, 3)
    assert state.why == "signal 9 ended the trainer; 2 retries are spent, `nightshift retry` tries again"


def test_nothing_of_a_run_is_left_when_it_ends(stack: Stack, settings: Settings) -> None:
    run_id = submit(settings, FakeSpec(leaves_child=True))

    reaches(settings.storage, run_id, "succeeded")

    assert processes_of(run_id) == []


def test_cancel_stops_after_a_checkpoint_and_retry_resumes_from_it(stack: Stack, settings: Settings) -> None:
    run_id = start_run(settings, FakeSpec(steps=40, step_seconds=0.05))
    paths = RunPaths.of(settings.storage, run_id)

    cancelled = actions.cancel(settings, paths)
    actions.retry(settings, paths)
    succeeded = reaches(settings.storage, run_id, "succeeded")

    assert (cancelled.state, cancelled.why) == ("cancelled", "stopped on request")
    assert succeeded.attempt == 2
    assert len((paths.folder / "steps.jsonl").read_text().splitlines()) == 40


def test_a_trainer_that_ends_with_1_and_no_error_line_was_ended_by_the_infrastructure(
    stack: Stack, settings: Settings
) -> None:
    run_id = submit(settings, FakeSpec(ending="exit"), JobRequest(retries=2))

    state = reaches(settings.storage, run_id, "lost")

    assert state.why == (
        "the trainer ended with exit code 1 and left no error line; `nightshift logs` shows what it said; "
        "2 retries are spent, `nightshift retry` tries again"
    )
    assert (state.attempt, state.losses) == (3, 3)


def test_cancel_now_kills_even_a_trainer_that_does_not_stop_and_its_children(stack: Stack, settings: Settings) -> None:
    run_id = start_run(settings, FakeSpec(steps=600, step_seconds=0.1, stubborn=True, leaves_child=True))
    paths = RunPaths.of(settings.storage, run_id)

    state = actions.cancel(settings, paths, at_once=True)

    assert state.state == "cancelled"
    assert processes_of(run_id) == []


def test_a_trainer_that_is_killed_is_started_again_from_its_checkpoint(stack: Stack, settings: Settings) -> None:
    run_id = start_run(settings, FakeSpec(steps=30, step_seconds=0.05))
    paths = RunPaths.of(settings.storage, run_id)

    os.kill(trainer_of(run_id), signal.SIGKILL)
    state = reaches(settings.storage, run_id, "succeeded")

    assert (state.attempt, state.losses) == (2, 1)
    assert len((paths.folder / "steps.jsonl").read_text().splitlines()) == 30


def test_a_run_over_its_max_duration_fails_after_a_checkpoint(stack: Stack, settings: Settings) -> None:
    run_id = submit(settings, FakeSpec(steps=600, step_seconds=0.05), JobRequest(max_duration_seconds=0.5))

    state = reaches(settings.storage, run_id, "failed")

    assert state.why is not None
    assert state.why.startswith("stopped, because --max-duration is over; ")


def test_an_attempt_that_was_declared_dead_can_publish_nothing(settings: Settings) -> None:
    run_id = submit(settings, FakeSpec())
    paths = RunPaths.of(settings.storage, run_id)
    claimed = claim_run(paths, "a worker that will freeze", THIS_MACHINE)
    assert claimed is not None

    state = mark_dead(paths, 1, "no heartbeat for 3 s")

    assert state is not None
    assert (state.state, state.losses) == ("queued", 1)
    with pytest.raises(LeaseLost, match="attempt 1 was marked dead"):
        Lease.join(paths, 1)


def test_two_workers_that_take_one_entry_start_one_attempt(settings: Settings) -> None:
    run_id = submit(settings, FakeSpec())
    paths = RunPaths.of(settings.storage, run_id)

    first, second = claim_run(paths, "one", THIS_MACHINE), claim_run(paths, "two", THIS_MACHINE)

    assert first is not None
    assert second is None
    assert state_of(settings.storage, run_id).job_worker == "one"


@dataclass
class EndsByItself:
    """A trainer that ends well after three looks at it."""

    looks: int = 0
    sends_own_heartbeat: bool = True

    def wait(self, _seconds: float) -> int | None:
        self.looks += 1
        return 0 if self.looks > 3 else None

    def dump_stacks(self) -> None:
        raise AssertionError("it does not hang")

    def kill(self) -> None:
        raise AssertionError("it ends by itself")


@pytest.mark.parametrize(
    "request_", [JobRequest(max_duration_seconds=1e-9), JobRequest(window="00:00-00:01", timezone="UTC")]
)
def test_a_pause_of_the_storage_does_not_end_a_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request_: JobRequest
) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    claimed = claim_run(paths, "a worker", THIS_MACHINE)
    assert claimed is not None
    lease, progress = claimed.lease, ProgressWatch(paths, 1, 600.0)
    watcher = _AttemptWatcher(paths, lease, request_, EndsByItself(), 0.0, 0.0, progress)
    monkeypatch.setattr(tasks, "local_now", lambda _: datetime(2026, 11, 26, 12, tzinfo=UTC))

    drafts = itertools.count()

    def stale(*_: object, **_words: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), f".1.json.{next(drafts)}")

    monkeypatch.setattr(Lease, "check", stale)
    monkeypatch.setattr(StopRequest, "read", stale)
    monkeypatch.setattr(StopRequest, "publish", stale)
    monkeypatch.setattr(ProgressWatch, "_progress", stale)

    assert watcher.wait_for_end() == 0
    assert caplog.text.count("cannot be written yet: Stale file handle\n") == 1
    assert caplog.text.count("its heartbeat cannot be written: Stale file handle\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "code", "state"),
    [
        ("stop.json", {"reason": "cancel", "attempt": 1}, ExitCode.STOPPED, "cancelled"),
        ("error.json", {"error": "the images are all black", "attempt": 1}, ExitCode.FAILED, "failed"),
        ("error.json", {"error": "the GPU is lost", "attempt": 1, "retry": True}, ExitCode.WORKERS_LOST, "queued"),
        ("result.json", {"metrics": {"auroc": 0.75}}, ExitCode.SUCCEEDED, "succeeded"),
    ],
)
def test_an_end_is_not_decided_by_a_file_that_cannot_be_read(  # noqa: PLR0917
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, content: object, code: int, state: str
) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    claimed = claim_run(paths, "a worker", THIS_MACHINE)
    assert claimed is not None
    write_json(paths.folder / name, content)
    read_content = files.read_content

    def unanswered(path: Path) -> bytes:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_content(path)

    with monkeypatch.context() as failing:
        failing.setattr(files, "read_content", unanswered)
        with pytest.raises(StorageError, match="Input/output error"):
            end(paths, claimed.lease, code)
        meanwhile = state_of(settings.storage, paths.run_id).state
    mark_dead(paths, 1, "its job process died")

    ended = state_of(settings.storage, paths.run_id)
    assert (meanwhile, ended.state, ended.losses) == ("running", state, int(state == "queued"))
    assert ended.metric == (("auroc", 0.75) if state == "succeeded" else None)
