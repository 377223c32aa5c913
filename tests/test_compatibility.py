"""Storages that released versions wrote, read and continued by this one; `tests/samples/README.md` describes them."""

import base64
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import pytest
import torch
from efficientnet_pytorch import EfficientNet
from redis import Redis

from cluster.files import read_json
from cluster.launch import THIS_MACHINE
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.verify import verify
from jobs.__main__ import main
from jobs.queue import actions, schedules
from jobs.queue.entries import fetch_entry
from jobs.queue.queues import waiting
from jobs.queue.tasks import claim_run
from jobs.runs import state as run_state
from jobs.runs.state import read_state
from tests.trained import attempted, done
from trainer.specs import EvaluateSpec, PredictSpec, build, read_spec

SAMPLES = sorted((Path(__file__).parent / "samples").glob("v*.tar.xz"))
PLACEHOLDER = "SAMPLE"  # for the folder of the sample


@pytest.fixture(scope="module", params=SAMPLES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    for file in folder.rglob("*.json"):
        file.write_text(file.read_text().replace(PLACEHOLDER, str(folder)))
    backbone = EfficientNet.from_name("efficientnet-b0").state_dict()
    torch.save({name: torch.zeros_like(values) for name, values in backbone.items()}, folder / "zeros.pth")
    return folder


@pytest.fixture
def old(settings: Settings, sample: Path) -> Settings:
    return replace(settings, storage=sample / "storage")


def named(old: Settings, name: str) -> RunPaths:
    return run_state.find(old.storage, name)


@pytest.fixture
def say(old: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(old.storage))
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", str(old.redis_url))

    def run(*words: str) -> str:
        main([*words])
        return capsys.readouterr().out

    return run


def test_the_runs_are_listed_and_shown(say: Callable[..., str], sample: Path) -> None:
    listed = {run["name"]: run["state"] for run in json.loads(say("list", "--json")) if run["name"]}
    shown = json.loads(say("show", "done", "--json"))
    trials = json.loads(say("trials", "night", "--json"))
    best = json.loads(say("best", "night", "--json"))

    assert listed == {"waiting": "queued", "stopped": "cancelled", "night": "succeeded", "done": "succeeded"}
    assert shown["result"]["metrics"]["n"] == 6
    assert [line["epoch"] for line in shown["metrics"]] == [1, 2]
    assert [trial["state"] for trial in trials] == ["finished", "finished"]
    assert best["checkpoint"] == str(sample / "storage" / "runs" / best["search"] / "best")


def test_the_data_set_is_whole(sample: Path) -> None:
    assert list(verify(str(sample / "shards"))) == []


def test_the_model_is_evaluated_and_predicts_as_it_did(old: Settings, sample: Path, tmp_path: Path) -> None:
    model = named(old, "done").best
    shards = str(sample / "shards")

    _, evaluation = done(tmp_path, build(EvaluateSpec, model=str(model), shards=shards))
    paths, _ = done(tmp_path, build(PredictSpec, model=str(model), images=(shards,), split="test"), "prediction")

    before = read_json(named(old, "done").result)["metrics"]
    assert evaluation.metrics["n"] == 6
    assert evaluation.metrics["accuracy"] == before["accuracy"]
    assert len(paths.predicted("csv").read_text().splitlines()) == 1 + 6


def test_the_cancelled_training_resumes_from_its_checkpoint(old: Settings) -> None:
    paths = named(old, "stopped")
    first = read_json(paths.checkpoints / "step-000000298" / "position.json")["epoch"]

    queued = actions.retry(old, paths)
    result = attempted(paths, read_spec(paths.spec))

    epochs = [json.loads(line)["epoch"] for line in paths.metrics.read_text().splitlines()]
    assert (queued.state, queued.attempt) == ("queued", 1)
    assert epochs == list(range(1, 151))
    assert epochs[first] == first + 1
    assert result.metrics["n"] == 6


def test_the_queued_run_and_its_entry_are_taken(old: Settings, redis: Redis) -> None:
    paths = named(old, "waiting")
    fields = read_json(old.storage / "entry.json")
    redis.hset(f"rq:job:{paths.run_id}", mapping={name: base64.b64decode(value) for name, value in fields.items()})
    redis.rpush("rq:queue:nightshift-normal", paths.run_id)

    entry = fetch_entry(redis, paths.run_id)
    claimed = claim_run(paths, "a worker", THIS_MACHINE)

    assert waiting(redis, "normal") == [paths.run_id] == [entry.id]
    assert claimed is not None
    assert claimed.request.name == "waiting"
    assert read_state(paths).notify == "http://127.0.0.1:9/x"


def test_the_schedule_submits_its_next_run(old: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    [schedule] = schedules.schedules(old)
    noon_of_the_next_day = datetime.combine(schedule.served.date() + timedelta(days=1), time(12), UTC)
    monkeypatch.setattr(schedules, "local_now", lambda _: noon_of_the_next_day)

    [run_id] = schedules.submit_due(old)

    state = read_state(RunPaths.of(old.storage, run_id))
    assert (schedule.name, schedule.cron) == ("nightly", "0 20 * * *")
    assert (state.name, state.state) == (f"nightly-{schedule.served:%Y%m%d}-2000", "queued")
    assert schedules.submit_due(old) == []
