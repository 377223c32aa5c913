"""TensorBoard gets every epoch once; for MLflow a run is only marked, so that no server costs a run anything."""

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.exit_codes import ExitCode
from cluster.files import append_line, write_json, write_text
from cluster.lease import Lease, latest_attempt
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from tests.stack import eventually
from trainer.attempt import Attempt
from trainer.errors import Stopped
from trainer.result import RunResult
from trainer.specs import AnySpec, PredictSpec, TrainSpec
from trainer.tracking import tracking
from trainer.tracking.mlflow import marks
from trainer.tracking.tracking import track_run

SPEC = TrainSpec(shards="s3://key:hunter2@bucket/shards", weights="none", epochs=3)


@pytest.fixture
def paths(storage: Path) -> RunPaths:
    found = RunPaths.of(storage, "train-20261123-020000-abc123")
    found.folder.mkdir()
    return found


def epoch(paths: RunPaths, number: int, loss: float, attempt: int = 1) -> None:
    time_ = f"2026-11-23T02:0{number}:00Z"
    line = {"epoch": number, "epochs": 3, "valid_loss": loss, "lr": 0.1, "best": True, "attempt": attempt}
    append_line(paths.metrics, {**line, "time": time_})


def drop_epochs_after(paths: RunPaths, number: int) -> None:
    """Remove the lines of epochs that a resumed training repeats."""
    kept = paths.metrics.read_text().splitlines(keepends=True)[:number]
    write_text(paths.metrics, "".join(kept))


def attempt_at(paths: RunPaths, mlflow_uri: str | None = None) -> Attempt:
    settings = Settings(storage=paths.storage, mlflow_uri=mlflow_uri)
    lease = Lease.claim(paths, after=latest_attempt(paths))
    return Attempt(paths=paths, lease=lease, settings=settings)


def result(attempt: Attempt) -> RunResult:
    metrics = {"split": "valid", "accuracy": 0.9, "n": 40, "classes": ["a", "b"]}
    return RunResult(kind="train", checkpoint=str(attempt.paths.best), metrics=metrics, seconds=1.0)


def stopped_after_two_epochs(paths: RunPaths, attempt: Attempt) -> None:
    with contextlib.suppress(Stopped), track_run(attempt, SPEC):
        epoch(paths, 1, 0.5)
        epoch(paths, 2, 0.25)
        raise Stopped("stopped after a checkpoint")


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    if not folder.exists():
        return []
    found = EventAccumulator(str(folder))
    found.Reload()
    points = found.Scalars(name) if name in found.Tags()["scalars"] else []
    return [(event.step, round(event.value, 3)) for event in points]


def test_tensorboard_has_a_point_of_each_metric_for_every_epoch(paths: RunPaths) -> None:
    with track_run(attempt_at(paths), SPEC):
        epoch(paths, 1, 0.5)
        epoch(paths, 2, 0.25)

    found = EventAccumulator(str(paths.events))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == ["lr", "valid_loss"]
    assert [(event.step, event.value) for event in found.Scalars("valid_loss")] == [(1, 0.5), (2, 0.25)]
    assert found.Scalars("valid_loss")[0].wall_time == 1795399260.0


def test_metrics_are_written_while_the_run_is_running(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.tracking.tracking.POLL_SECONDS", 0.05)
    with track_run(attempt_at(paths), SPEC):
        for number in (1, 2, 3):
            epoch(paths, number, 1.0 / number)
            assert eventually(lambda number=number: len(curve(paths.events, "lr")) == number)

    assert curve(paths.events, "valid_loss") == [(1, 1.0), (2, 0.5), (3, 0.333)]


def test_an_epoch_that_the_next_attempt_repeats_is_logged_once(paths: RunPaths) -> None:
    stopped_after_two_epochs(paths, attempt_at(paths))
    with track_run(attempt_at(paths), SPEC):
        drop_epochs_after(paths, 1)
        epoch(paths, 2, 0.75, attempt=2)
        epoch(paths, 3, 0.125, attempt=2)

    assert curve(paths.events, "valid_loss") == [(1, 0.5), (2, 0.75), (3, 0.125)]


def test_an_epoch_repeated_within_one_attempt_is_logged_once(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.tracking.tracking.POLL_SECONDS", 0.05)
    with track_run(attempt_at(paths), SPEC):  # restarted workers repeat epochs
        epoch(paths, 1, 0.5)
        epoch(paths, 2, 0.25)
        assert eventually(lambda: len(curve(paths.events, "lr")) == 2)
        drop_epochs_after(paths, 1)
        epoch(paths, 2, 0.75)

    assert curve(paths.events, "valid_loss") == [(1, 0.5), (2, 0.75)]


def test_each_trial_of_a_search_has_its_own_series(paths: RunPaths) -> None:
    with track_run(attempt_at(paths), SPEC):
        for trial, number, value in ((1, 1, 0.5), (2, 1, 0.4), (1, 2, 0.3), (1, 2, 0.9)):
            event = {"event": "epoch", "trial": trial, "epoch": number, "value": value}
            append_line(paths.trials, {**event, "time": "2026-11-23T02:00:00+00:00", "attempt": 1})

    assert curve(paths.events / "trial-001", "value") == [(1, 0.5), (2, 0.3)]  # the first report of an epoch counts
    assert curve(paths.events / "trial-002", "value") == [(1, 0.4)]


def test_an_attempt_that_lost_its_lease_writes_no_events(paths: RunPaths) -> None:
    first = attempt_at(paths)
    attempt_at(paths)

    with track_run(first, SPEC):
        epoch(paths, 1, 0.5)

    assert not paths.events.exists()


@contextlib.contextmanager
def empty_folder_instead_of(path: Path) -> Iterator[None]:
    """Put an empty folder in the place of a file or folder, as where the share of a storage is not mounted."""
    aside = path.rename(path.with_name("aside"))
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()
        aside.rename(path)


FAULTS = {"away": ("storage", Lease, "check"), "unreadable": ("metrics", tracking, "read_epoch_history")}


@pytest.mark.parametrize(("place", "owner", "name"), FAULTS.values(), ids=FAULTS)
def test_tracking_goes_on_when_the_storage_answers_again(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, place: str, owner: Any, name: str
) -> None:
    read, is_due, is_over = getattr(owner, name), threading.Event(), threading.Event()

    def read_during_fault(argument: Any) -> Any:
        if not is_due.is_set() or is_over.is_set():
            return read(argument)
        try:
            with empty_folder_instead_of(getattr(paths, place)):
                return read(argument)
        finally:
            is_over.set()

    attempt = attempt_at(paths)
    monkeypatch.setattr("trainer.tracking.tracking.POLL_SECONDS", 0.05)
    monkeypatch.setattr(owner, name, read_during_fault)
    with track_run(attempt, SPEC):
        epoch(paths, 1, 0.5)
        is_due.set()
        assert is_over.wait(600)
        epoch(paths, 2, 0.25)

    assert curve(paths.events, "valid_loss") == [(1, 0.5), (2, 0.25)]


def test_a_full_disk_loses_the_event_files_and_not_the_run(paths: RunPaths, caplog: pytest.LogCaptureFixture) -> None:
    paths.events.write_text("in the way")

    with track_run(attempt_at(paths), SPEC):
        epoch(paths, 1, 0.5)

    assert caplog.messages == ["TensorBoard cannot log this run (FileExistsError); retrying"]


def test_a_run_is_marked_for_mlflow_and_connects_to_no_server(paths: RunPaths) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        attempt = attempt_at(paths, f"http://me:hunter2@127.0.0.1:{listening.getsockname()[1]}")

        with track_run(attempt, SPEC):
            epoch(paths, 1, 0.5)

        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert [file.name for file in marks(paths.storage).iterdir()] == [paths.run_id]
    assert "hunter2" not in repr(attempt)


def test_a_prediction_is_not_marked_because_its_spec_names_images(paths: RunPaths) -> None:
    spec: AnySpec = PredictSpec(model="train-20261123-010000-abc123", images=("/scans/patient-name.png",))

    with track_run(attempt_at(paths, "http://127.0.0.1:1"), spec):
        pass

    assert not marks(paths.storage).exists()


def test_a_mark_that_cannot_be_written_fails_no_run(paths: RunPaths, caplog: pytest.LogCaptureFixture) -> None:
    marks(paths.storage).write_text("in the way")

    with track_run(attempt_at(paths, "http://127.0.0.1:1"), SPEC):
        epoch(paths, 1, 0.5)

    assert caplog.messages == ["MLflow gets nothing of this run (File exists)"]


@pytest.mark.slow
def test_a_resumed_training_logs_each_epoch_once(
    storage: Path, digits_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(storage))
    paths = RunPaths.of(storage, "train-20261123-020000-abc123")
    paths.folder.mkdir()
    options = {"weights": "none", "freeze": "none", "image_size": 32, "epochs": 3}
    write_json(paths.spec, TrainSpec(shards=str(digits_shards), **options).to_json())

    with subprocess.Popen([sys.executable, "-m", "trainer", paths.folder]) as first:
        assert eventually(lambda: any(paths.checkpoints.glob("step-*")))
        first.kill()
    second = subprocess.run([sys.executable, "-m", "trainer", paths.folder], check=False)

    epochs = [1, 2, 3]
    assert (first.returncode, second.returncode) == (-9, 0)
    assert [step for step, _ in curve(paths.events, "valid_accuracy")] == epochs


TRACK_WITH_A_QUESTION = """
import sys
from contextlib import contextmanager
import trainer.__main__ as command_line

@contextmanager
def track_run(attempt, spec):
    print("torch" in sys.modules, "trainer.train" in sys.modules)
    raise command_line.Stopped("asked")
    yield

command_line.track_run = track_run
sys.exit(command_line.main([sys.argv[1]]))
"""


def test_a_run_imports_torch_before_the_tracking_thread_starts(paths: RunPaths) -> None:
    write_json(paths.spec, SPEC.to_json())

    asked = subprocess.run(
        [sys.executable, "-c", TRACK_WITH_A_QUESTION, str(paths.folder)], capture_output=True, text=True, check=False
    )

    assert (asked.stdout, asked.returncode) == ("True True\n", ExitCode.STOPPED), asked.stderr
