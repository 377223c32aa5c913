"""Lists of ten thousand runs, metrics, queues and workers as people and machines read them."""

import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from redis import Redis

from cluster.files import write_json
from cluster.process_env import job_worker_environment
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.prometheus import serve
from jobs.queue import actions
from jobs.queue.queues import pause, queue, unpause, waiting
from jobs.queue.stack import start_stack
from jobs.queue.submit import submit
from jobs.queue.worker_list import live_workers
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from jobs.runs.state import RunState
from tests.conftest import Say
from tests.stack import FAKE_WORKER, FakeSpec, eventually, free_port, reaches, state_of


@pytest.fixture
def ten_thousand(settings: Settings) -> Settings:
    for number in range(10_000):
        paths = RunPaths.of(settings.storage, f"train-20261123-{number:06}-aaaaaa")
        paths.folder.mkdir()
        state = "failed" if number % 1000 == 0 else "succeeded"
        record = RunState(id=paths.run_id, kind="train", state=state, created="2026-11-23T02:00:00.000Z")
        paths.state.write_text(json.dumps(record.to_json()))
    return settings


def test_of_ten_thousand_runs_only_those_that_are_listed_are_read(
    ten_thousand: Settings, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_state, read = run_state.read_state, []
    monkeypatch.setattr(run_state, "read_state", lambda paths: read.append(paths.run_id) or read_state(paths))

    newest = json.loads(say("list", "--limit", "20", "--json")[1])
    read_for_newest = len(read)
    rare = json.loads(say("list", "--state", "failed", "--json")[1])

    assert newest[0]["id"] == "train-20261123-009999-aaaaaa"
    assert len(newest) == 20
    assert len(rare) == 10
    assert read_for_newest == 20


def test_metrics_count_what_waits_runs_and_works(settings: Settings, redis: Redis) -> None:
    submit(settings, FakeSpec(), JobRequest(priority="high"))
    submit(settings, FakeSpec())
    port = free_port()

    serve(settings, port)
    text = scrape(port)

    assert 'nightshift_queue_waiting{priority="high"} 1.0' in text
    assert 'nightshift_runs{kind="train",state="queued"} 2.0' in text
    assert "nightshift_redis_up 1.0" in text
    assert "nightshift_queues_paused 0.0" in text


def test_metrics_go_on_while_redis_is_away(settings: Settings) -> None:
    port = free_port()
    away = Settings(storage=settings.storage, redis_url="redis://127.0.0.1:1/0")

    serve(away, port)

    assert "nightshift_redis_up 0.0" in scrape(port)


def test_a_paused_queue_gives_nothing_out_until_it_is_resumed(settings: Settings, say: Say) -> None:
    with start_stack(settings, 1, worker_command=FAKE_WORKER):
        assert eventually(lambda: '"workers": 1' in say("queue", "show", "--json")[1])
        say("queue", "pause")
        run_id = submit(settings, FakeSpec())
        stays = not eventually(lambda: not run_state.pending_ids(settings.storage), seconds=2)
        shown = json.loads(say("queue", "show", "--json")[1])
        say("queue", "resume")

        reaches(settings.storage, run_id, "succeeded")

    assert stays
    assert shown["paused"] is True
    assert shown["queues"][1] == {"priority": "normal", "waiting": 1, "next": [run_id], "workers": 1}


def test_a_worker_that_ends_with_its_queue_waits_while_the_queues_are_paused(settings: Settings, redis: Redis) -> None:
    run_id = submit(settings, FakeSpec())
    pause(redis)
    with burst_worker(settings) as process:
        waits = eventually(lambda: [worker.state for worker in live_workers(redis)] == ["suspended"])
        heartbeat = live_workers(redis)[0].beat
        stays_known = eventually(lambda: live_workers(redis)[0].beat != heartbeat)
        unpause(redis)
        code = process.wait(timeout=600)

    assert (waits, stays_known, code) == (True, True, 0)
    assert state_of(settings.storage, run_id).state == "succeeded"


def test_a_worker_that_waits_for_paused_queues_ends_at_once_on_sigterm(settings: Settings, redis: Redis) -> None:
    run_id = submit(settings, FakeSpec())
    pause(redis)
    with burst_worker(settings) as process:
        assert eventually(lambda: [worker.state for worker in live_workers(redis)] == ["suspended"])
        process.terminate()
        code = process.wait(timeout=600)

    assert code == 0
    assert live_workers(redis) == []
    assert waiting(redis, "normal") == [run_id]


@contextlib.contextmanager
def burst_worker(settings: Settings) -> "Iterator[subprocess.Popen[bytes]]":
    """A job worker that ends when the queues are empty, as KEDA starts them."""
    with subprocess.Popen([*FAKE_WORKER, "--burst"], env=job_worker_environment(settings)) as process:
        yield process
        process.kill()


def test_high_goes_before_normal_before_low(settings: Settings, redis: Redis) -> None:
    low, normal, high = (submit(settings, FakeSpec(), JobRequest(priority=p)) for p in ("low", "normal", "high"))
    queues = [queue(redis, priority) for priority in ("high", "normal", "low")]

    taken = []
    while (found := type(queues[0]).dequeue_any(queues, None, redis)) is not None:
        taken.append(found[0].id)

    assert taken == [high, normal, low]


def test_logs_follow_a_run_until_it_ends(settings: Settings, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = submit(settings, FakeSpec())
    paths = RunPaths.of(settings.storage, run_id)
    paths.log.write_text("first\n")

    def go_on(_seconds: float) -> None:
        with paths.log.open("a") as file:
            file.write("second\n")
        actions.cancel(settings, paths)

    monkeypatch.setattr("cluster.logs.time", SimpleNamespace(sleep=go_on))  # between two reads

    said = say("logs", run_id, "-f")

    assert said[1] == "first\nsecond\n"


def test_an_address_to_notify_is_not_shown(settings: Settings, say: Say) -> None:
    run_id = submit(settings, FakeSpec())
    paths = RunPaths.of(settings.storage, run_id)
    write_json(paths.job, {**json.loads(paths.job.read_text()), "notify": "https://hooks.example/secret-path"})

    shown = say("show", run_id, "--json")[1]

    assert json.loads(shown)["request"]["notify"] == "set"
    assert "secret-path" not in shown


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())
