"""Runs, trials and promoted models reach MLflow once, and a server that is slow or away costs runs nothing."""

import logging
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cluster.errors import SettingsError
from cluster.files import append_line, write_json
from cluster.process_env import mlflow_environment
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import mlflow_sender
from jobs.queue.mlflow_sender import MlflowSender, Sending, is_due
from jobs.runs import promotions
from jobs.runs.promotions import Promotion
from jobs.runs.state import RunState, changing, write_state
from tests.conftest import Say
from trainer.specs import SearchSpec, Spec, TrainSpec
from trainer.tracking.mlflow import MlflowServer, mark_for_mlflow

SPEC = TrainSpec(shards="s3://key:hunter2@bucket/shards", weights="none", epochs=3)
CREATED = "2026-11-23T02:00:00.000Z"
TRAIN_ID, SEARCH_ID = "train-20261123-020000-abc123", "search-20261123-020000-abc123"


@pytest.fixture
def store(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with MLflow's file store, which its client refuses unless a variable allows it."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    settings = Settings(storage=storage, mlflow_uri=(tmp_path / "mlruns").as_uri())
    for name, value in mlflow_environment(settings).items():
        monkeypatch.setenv(name, value)
    return settings


def new_run(settings: Settings, run_id: str, spec: Spec, state: str = "running") -> RunPaths:
    """A run that its trainer has marked."""
    paths = RunPaths.of(settings.storage, run_id)
    paths.folder.mkdir()
    write_json(paths.spec, spec.to_json())
    write_state(
        paths,
        RunState(id=run_id, kind=spec.kind, state=state, created=CREATED, started=CREATED, attempt=1, owner="ann"),
    )
    mark_for_mlflow(settings.storage, run_id)
    return paths


def epoch(paths: RunPaths, number: int, loss: float) -> None:
    line = {"epoch": number, "epochs": 3, "valid_loss": loss, "lr": 0.1, "attempt": 1}
    append_line(paths.metrics, {**line, "time": f"2026-11-23T02:0{number}:00Z"})


def end(paths: RunPaths, state: str = "succeeded") -> None:
    """End a run; a training that succeeds has published a model and a report."""
    if state == "succeeded":
        (paths.best / "thresholds").mkdir(parents=True)
        files = ("model.safetensors", "head.json", "manifest.json", "out_of_fold.safetensors", "thresholds/night.json")
        for name in files:
            (paths.best / name).write_text(name)
        paths.report.write_text("<img alt='patient-name.png'>")
        paths.predicted("csv").write_text("patient-name.png")
        write_json(paths.result, {"metrics": {"accuracy": 0.9, "n": 40, "split": "valid"}})
    with changing(paths) as found:
        write_state(paths, found.with_state(state))


def sent(settings: Settings) -> bool:
    """Send what is due, as a process that was just started; return whether something is left."""
    return Sending(settings, MlflowServer(str(settings.mlflow_uri))).send_due()


def client(settings: Settings) -> MlflowClient:
    return MlflowClient(tracking_uri=settings.mlflow_uri)


def runs(settings: Settings, query: str = "") -> list[Run]:
    experiment = client(settings).get_experiment_by_name("nightshift")
    found: list[Run] = client(settings).search_runs([experiment.experiment_id], query, order_by=["tags.mlflow.runName"])
    return found


def history(settings: Settings, run: Run, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client(settings).get_metric_history(run.info.run_id, name)]


def artifacts(settings: Settings, run: Run, folder: str | None = None) -> list[str]:
    return [file.path for file in client(settings).list_artifacts(run.info.run_id, folder)]


def test_a_run_is_sent_while_it_runs_and_once_more_when_it_has_ended(store: Settings) -> None:
    paths = new_run(store, TRAIN_ID, SPEC)
    epoch(paths, 1, 0.5)
    left = sent(store)
    [running] = runs(store)
    epoch(paths, 2, 0.25)
    end(paths)

    left_after_the_end = sent(store)

    [run] = runs(store)
    assert (left, running.info.status, left_after_the_end, run.info.status) == (True, "RUNNING", False, "FINISHED")
    assert (run.data.tags["nightshift.run"], run.data.tags["mlflow.user"]) == (TRAIN_ID, "ann")
    assert (run.data.params["epochs"], run.data.params["shards"]) == ("3", "s3://bucket/shards")
    assert (run.data.metrics["final/accuracy"], run.data.metrics["final/n"]) == (0.9, 40)
    assert history(store, run, "valid_loss") == [(1, 0.5), (2, 0.25)]


def test_a_run_has_its_own_name_in_mlflow_and_is_known_by_its_id(store: Settings) -> None:
    paths = new_run(store, TRAIN_ID, SPEC)
    with changing(paths) as found:
        write_state(paths, replace(found, name="night"))

    sent(store)
    end(paths)
    sent(store)

    [run] = runs(store)
    assert (run.info.run_name, run.data.tags["nightshift.run"], run.info.status) == ("night", TRAIN_ID, "FINISHED")


@pytest.mark.parametrize(("state", "status"), [("failed", "FAILED"), ("lost", "FAILED"), ("cancelled", "KILLED")])
def test_the_end_of_a_run_is_in_the_words_of_mlflow(store: Settings, state: str, status: str) -> None:
    end(new_run(store, TRAIN_ID, SPEC), state)

    sent(store)

    assert [run.info.status for run in runs(store)] == [status]


def test_a_retried_run_continues_its_mlflow_run(store: Settings) -> None:
    paths = new_run(store, TRAIN_ID, SPEC)
    epoch(paths, 1, 0.5)
    end(paths, "failed")
    sent(store)
    with changing(paths) as found:
        write_state(paths, found.with_state("running", attempt=2))
    mark_for_mlflow(store.storage, TRAIN_ID)
    epoch(paths, 2, 0.25)
    sent(store)
    [running] = runs(store)
    end(paths)

    sent(store)

    [run] = runs(store)
    assert (running.info.status, run.info.status) == ("RUNNING", "FINISHED")
    assert history(store, run, "valid_loss") == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize(
    ("uploaded", "found"),
    [
        (("model",), ["model"]),
        (("report",), ["report.html"]),
        (("model", "report"), ["model", "report.html"]),
        ((), []),
    ],
)
def test_only_the_chosen_artifacts_are_uploaded(store: Settings, uploaded: tuple[str, ...], found: list[str]) -> None:
    end(new_run(store, TRAIN_ID, SPEC))
    settings = replace(store, mlflow_artifacts=uploaded)

    sent(settings)

    [run] = runs(settings)
    files = [f"model/{name}" for name in ("head.json", "manifest.json", "model.safetensors", "thresholds")]
    assert artifacts(settings, run) == found
    assert artifacts(settings, run, "model") == (files if "model" in uploaded else [])  # no predictions of images


def trial_events(paths: RunPaths, *events: dict[str, Any]) -> None:
    for event in events:
        append_line(paths.trials, {**event, "time": "2026-11-23T02:01:00+00:00", "attempt": 1})


def test_each_trial_is_a_child_run_and_is_sent_once(store: Settings) -> None:
    paths = new_run(store, SEARCH_ID, SearchSpec(shards="shards", weights="none"))
    trial_events(
        paths,
        {"event": "started", "trial": 0, "config": {"lr": 0.1}},
        {"event": "started", "trial": 1, "config": {"lr": 0.2}},
        {"event": "epoch", "trial": 0, "epoch": 1, "value": 0.5},
    )
    sent(store)
    trial_events(
        paths,
        {"event": "epoch", "trial": 0, "epoch": 2, "value": 0.25},
        {"event": "finished", "trial": 0, "why": "epochs"},
        {"event": "epoch", "trial": 1, "epoch": 1, "value": 0.75},
    )
    end(paths, "cancelled")

    sent(store)

    [search] = runs(store, f"tags.`nightshift.run` = '{SEARCH_ID}'")
    trials = runs(store, f"tags.`mlflow.parentRunId` = '{search.info.run_id}'")
    assert [(run.info.run_name, run.info.status, run.data.params["lr"]) for run in trials] == [
        ("trial 0", "FINISHED", "0.1"), ("trial 1", "KILLED", "0.2"),
    ]  # fmt: skip
    assert [history(store, run, "value") for run in trials] == [[(1, 0.5), (2, 0.25)], [(1, 0.75)]]
    assert len(runs(store)) == 3


def test_a_run_that_the_server_has_without_its_options_gets_them(store: Settings) -> None:
    new_run(store, TRAIN_ID, SPEC)
    experiment = client(store).create_experiment("nightshift")
    client(store).create_run(experiment, tags={"nightshift.run": TRAIN_ID})  # and then the server went away

    sent(store)

    [run] = runs(store)
    assert run.data.params["epochs"] == "3"


def test_a_run_that_somebody_deleted_in_mlflow_is_sent_again(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_sender, "RETRY_SECONDS", 0.0)
    paths = new_run(store, TRAIN_ID, SPEC)
    sending = Sending(store, MlflowServer(str(store.mlflow_uri)))
    sending.send_due()
    [deleted] = runs(store)
    client(store).delete_run(deleted.info.run_id)
    epoch(paths, 1, 0.5)
    end(paths)

    left = [sending.send_due(), sending.send_due()]

    [run] = runs(store)
    assert left == [True, False]
    assert (run.info.run_id != deleted.info.run_id, run.info.status) == (True, "FINISHED")
    assert history(store, run, "valid_loss") == [(1, 0.5)]


def promote(settings: Settings, paths: RunPaths, when: str, weights: str) -> None:
    before = promotions.history_of(settings.storage, "chest")
    found = Promotion(model=paths.run_id, folder=str(paths.best), weights=weights, who="ann", when=when)
    promotions.add(settings.storage, "chest", found, after=before[-1] if before else None)


def test_a_promoted_model_is_the_champion_of_a_registered_model(store: Settings) -> None:
    first, second = new_run(store, TRAIN_ID, SPEC), new_run(store, "train-20261124-020000-abc123", SPEC)
    end(first)
    end(second)
    champions = []
    for paths, when in ((first, "1"), (second, "2"), (first, "3")):
        promote(store, paths, when, weights=paths.run_id)
        assert is_due(store)
        sent(store)
        found = client(store).get_model_version_by_alias("chest", "champion")
        champions.append((found.version, client(store).get_run(found.run_id).data.tags["nightshift.run"]))

    assert [(str(version), run_id) for version, run_id in champions] == [
        ("1", TRAIN_ID), ("2", second.run_id), ("1", TRAIN_ID),
    ]  # fmt: skip
    assert found.source.endswith("/model")
    assert not is_due(store)


def test_a_run_that_was_deleted_or_damaged_keeps_no_other_from_being_sent(
    store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    mark_for_mlflow(store.storage, "train-20261122-010000-abc123")
    damaged = new_run(store, "train-20261122-020000-abc123", SPEC)
    damaged.state.write_text("{")
    end(new_run(store, TRAIN_ID, SPEC))

    left = sent(store)

    assert [run.info.run_name for run in runs(store)] == [TRAIN_ID]
    assert not left
    assert [message.partition(":")[0] for message in caplog.messages] == [f"{damaged.run_id} is not sent to MLflow"]


def test_a_dead_server_is_named_once_without_its_password_and_gets_the_run_when_it_is_back(
    store: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(mlflow_sender, "RETRY_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    end(new_run(store, TRAIN_ID, SPEC))
    dead = replace(store, mlflow_uri=f"http://me:hunter2@127.0.0.1:{port}")
    sending = Sending(dead, MlflowServer(str(dead.mlflow_uri)))

    left = [sending.send_due(), sending.send_due()]

    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warned == [f"MLflow at 127.0.0.1 did not take {TRAIN_ID} (MlflowException); it is tried again"]
    assert left == [True, True]
    assert "hunter2" not in caplog.text + repr(dead) + repr(sending)
    assert not sent(store)
    assert [run.info.status for run in runs(store)] == ["FINISHED"]


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(600)
        yield listening


def test_a_server_that_never_answers_does_not_hold_the_job_worker(
    store: Settings, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_sender, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(mlflow_sender, "FINISH_SECONDS", 0.1)
    new_run(store, TRAIN_ID, SPEC)
    settings = replace(store, mlflow_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
    serve, exit_codes = MlflowSender._serve, list[int]()

    def recorded(sender: MlflowSender) -> int:
        exit_codes.append(serve(sender))
        return exit_codes[-1]

    monkeypatch.setattr(MlflowSender, "_serve", recorded)

    with MlflowSender(settings) as sender:
        connection, _ = silent.accept()
    sender._thread.join(600)
    connection.close()

    assert exit_codes == [-signal.SIGKILL]
    assert not sender._thread.is_alive()


def test_a_job_worker_that_ends_by_itself_sends_its_run_first(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_sender, "LAST_SECONDS", 300.0)  # a busy machine needs long to load the client
    end(new_run(store, TRAIN_ID, SPEC))

    with MlflowSender(store, sends_last=True):
        pass

    assert [run.info.status for run in runs(store)] == ["FINISHED"]
    assert not is_due(store)


def test_reconcile_sends_where_no_job_worker_does(say: Say, settings: Settings, store: Settings) -> None:
    end(new_run(store, TRAIN_ID, SPEC))

    code, _, err = say("reconcile")

    assert code == 0, err
    assert [run.info.status for run in runs(store)] == ["FINISHED"]
    assert not is_due(store)


def test_an_unknown_artifact_is_refused_with_the_choices() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.read({"NIGHTSHIFT_MLFLOW_ARTIFACTS": "model, predictions"})

    cure = "write model, report, model,report or none"
    assert str(refused.value) == f"NIGHTSHIFT_MLFLOW_ARTIFACTS 'predictions' is unknown; {cure}"
    assert Settings.read({"NIGHTSHIFT_MLFLOW_ARTIFACTS": "none"}).mlflow_artifacts == ()


def test_without_a_server_there_is_no_thread(storage: Path) -> None:
    with MlflowSender(Settings(storage=storage)) as sender:
        assert not sender._thread.is_alive()
