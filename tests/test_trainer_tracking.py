"""TensorBoard and MLflow get every epoch once, and a server that does not answer costs a run nothing."""

import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.exit_codes import ExitCode
from cluster.files import append_line, read_json, write_json, write_text
from cluster.lease import Lease, latest_attempt
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from trainer.attempt import Attempt
from trainer.errors import Stopped
from trainer.result import RunResult
from trainer.specs import AnySpec, PredictSpec, TrainSpec
from trainer.tracking.tracking import track_run

SPEC = TrainSpec(shards="s3://key:hunter2@bucket/shards", weights="none", epochs=3)


@pytest.fixture
def paths(storage: Path) -> RunPaths:
    found = RunPaths.of(storage, "train-20261123-020000-abc123")
    found.folder.mkdir()
    return found


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's file store, which its client refuses unless a variable allows it."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


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
            wait_for(lambda number=number: len(curve(paths.events, "lr")) == number)

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
        wait_for(lambda: len(curve(paths.events, "lr")) == 2)
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


def test_a_full_disk_loses_the_event_files_and_not_the_run(paths: RunPaths, caplog: pytest.LogCaptureFixture) -> None:
    paths.events.write_text("in the way")

    with track_run(attempt_at(paths), SPEC):
        epoch(paths, 1, 0.5)

    assert caplog.messages == ["TensorBoard cannot be reached to log this run (FileExistsError); retrying"]


def test_mlflow_gets_the_spec_the_epochs_and_the_final_metrics_once(paths: RunPaths, server: str) -> None:
    stopped_after_two_epochs(paths, attempt_at(paths, server))
    interrupted = mlflow_run(server).info.status
    second = attempt_at(paths, server)
    with track_run(second, SPEC) as tracking:
        epoch(paths, 3, 0.125, attempt=2)
        tracking.result = result(second)

    run = mlflow_run(server)
    assert (interrupted, run.info.status, run.data.tags["nightshift.run"]) == ("KILLED", "FINISHED", paths.run_id)
    assert (run.data.params["epochs"], run.data.params["shards"]) == ("3", "s3://bucket/shards")
    assert {name: run.data.metrics[name] for name in ("final/accuracy", "final/n")} == {
        "final/accuracy": 0.9, "final/n": 40,
    }  # fmt: skip
    assert history(server, run.info.run_id, "valid_loss") == [(1, 0.5), (2, 0.25), (3, 0.125)]


def test_mlflow_marks_a_failed_run_as_failed(paths: RunPaths, server: str) -> None:
    with pytest.raises(ValueError, match="a bug"), track_run(attempt_at(paths, server), SPEC):
        raise ValueError("a bug")

    assert mlflow_run(server).info.status == "FAILED"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_an_unreachable_server_is_logged_once_without_its_password(
    paths: RunPaths, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("trainer.tracking.tracking.POLL_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    attempt = attempt_at(paths, f"http://me:hunter2@127.0.0.1:{port}")

    with track_run(attempt, SPEC) as tracking:
        for number in (1, 2, 3):
            epoch(paths, number, 0.5)
            time.sleep(0.2)
        tracking.result = result(attempt)

    reported = "MLflow at 127.0.0.1 cannot be reached to log this run (MlflowException); retrying"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [reported]
    assert "hunter2" not in caplog.text + repr(attempt) + repr(tracking)
    assert len(curve(paths.events, "lr")) == 3


def test_a_server_that_never_answers_does_not_delay_the_run(
    paths: RunPaths, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.tracking.tracking.FINISH_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    began = time.monotonic()

    with track_run(attempt_at(paths, f"http://127.0.0.1:{silent_port}"), SPEC):
        epoch(paths, 1, 0.5)

    assert time.monotonic() - began < 20  # loading the client takes seconds on a busy machine


def test_names_of_images_are_not_sent_to_mlflow(paths: RunPaths, server: str, tmp_path: Path) -> None:
    spec: AnySpec = PredictSpec(model="train-20261123-010000-abc123", images=("/scans/patient-name.png",))

    with track_run(attempt_at(paths, server), spec):
        pass

    assert not (tmp_path / "mlruns").exists()


def mlflow_run(server: str):
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("nightshift")
    [run] = client.search_runs([experiment.experiment_id])
    return run


def history(server: str, run_id: str, name: str) -> list[tuple[int, float]]:
    found = MlflowClient(tracking_uri=server).get_metric_history(run_id, name)
    return [(metric.step, metric.value) for metric in found]


def wait_for(holds, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_resumed_training_logs_each_epoch_once(
    storage: Path, digits_shards: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(storage))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    paths = RunPaths.of(storage, "train-20261123-020000-abc123")
    paths.folder.mkdir()
    options = {"weights": "none", "freeze": "none", "image_size": 32, "epochs": 3}
    write_json(paths.spec, TrainSpec(shards=str(digits_shards), **options).to_json())

    with subprocess.Popen([sys.executable, "-m", "trainer", paths.folder]) as first:
        wait_for(lambda: list(paths.checkpoints.glob("step-*")), seconds=120)
        first.kill()
    second = subprocess.run([sys.executable, "-m", "trainer", paths.folder], check=False)

    epochs = [1, 2, 3]
    assert (first.returncode, second.returncode) == (-9, 0)
    assert [step for step, _ in curve(paths.events, "valid_accuracy")] == epochs
    run = mlflow_run(server)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(server, run.info.run_id, "valid_accuracy")] == epochs
    assert run.data.metrics["final/accuracy"] == read_json(paths.result)["metrics"]["accuracy"]


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
