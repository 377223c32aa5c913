"""What `queue show`, `doctor`, `show` and submit commands say of runs that no job worker will start."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.doctor import redis_findings
from jobs.cli.run_view import RunView
from jobs.cli.submission import queues_start_runs
from jobs.queue import queues
from jobs.queue.overview import QueueCheck, queue_overview, waiting_faults
from jobs.queue.submit import submit
from jobs.runs.request import JobRequest
from jobs.runs.start_forecast import NEXT, start_forecast
from jobs.runs.state import read_state, write_state
from tests.conftest import Say
from tests.silent_server import SilentServer, silent_server
from tests.stack import FakeSpec
from tests.test_jobs_worker_list import OURS, register

UNSERVED = "1 run waits in the queue low, which no job worker serves"
CURE = "start one with `nightshift worker`, which serves all queues"


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    with silent_server() as server:
        yield server


def test_runs_in_a_queue_that_no_job_worker_serves_are_a_fault_until_one_does(
    settings: Settings, redis: Redis, say: Say
) -> None:
    register(redis, OURS, "nightshift-high")
    submit(settings, FakeSpec(), JobRequest(priority="low"))

    code, shown, _ = say("queue", "show")
    before = redis_findings(settings)[0][1:]
    register(redis, "ours-2", "nightshift-low")
    after = redis_findings(settings)[0][1:]

    assert code == 0
    assert shown.splitlines()[-2:] == ["low         1 waiting    0 job workers", f"{UNSERVED}; {CURE}"]
    assert [(check.check, check.ok, check.found, check.cure) for check in before] == [("queues", False, UNSERVED, CURE)]
    assert [(check.ok, check.found, check.cure) for check in after] == [
        (True, "job workers serve all queues in which runs wait", None)
    ]


def test_runs_that_wait_while_the_queues_are_paused_are_a_fault(settings: Settings, redis: Redis) -> None:
    register(redis, OURS, "nightshift-normal")
    queues.pause(redis)
    nothing = waiting_faults(queue_overview(redis))
    submit(settings, FakeSpec())
    submit(settings, FakeSpec())

    faults = waiting_faults(queue_overview(redis))

    assert nothing == []
    assert faults == ["2 runs wait, and the queues are paused; open them with `nightshift queue resume`"]


def test_a_submitted_run_is_told_that_the_job_workers_serve_other_queues(
    settings: Settings, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    register(redis, OURS, "nightshift-high")

    starts = [queues_start_runs(settings, "high"), queues_start_runs(settings, "low")]

    assert starts == [True, False]
    assert capsys.readouterr().err == f"No job worker serves the queue low; {CURE}.\n"


def test_a_run_that_was_queued_again_says_why_and_what_it_waits_for(settings: Settings) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    lost = "attempt 1 was lost (no heartbeat for 30 s); the next goes on from its checkpoint"
    state = write_state(paths, read_state(paths).with_state("queued", lost, losses=1))

    forecast = start_forecast(settings.storage, state)

    assert forecast == f"{lost}; {NEXT}"
    assert NEXT == "next to start, when a job worker of its queue is free; `nightshift queue show` counts them"


def test_show_asks_a_silent_redis_once_whether_the_queues_are_paused(
    settings: Settings, say: Say, silent: SilentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = submit(settings, FakeSpec())
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", silent.url)

    code, shown, _ = say("show", run_id)

    assert (code, silent.new_connections()) == (0, 1)
    assert f"queued: {NEXT.partition(';')[0]}" in shown


def test_a_view_that_follows_a_run_asks_a_silent_redis_again_only_after_a_while(
    settings: Settings, silent: SilentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = read_state(RunPaths.of(settings.storage, submit(settings, FakeSpec())))
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", silent.url)
    monkeypatch.setattr("jobs.cli.run_view.FORECAST_SECONDS", -1.0)
    monkeypatch.setattr("jobs.queue.overview.SILENT_SECONDS", float("inf"))
    view = RunView(settings.storage)

    for _ in range(3):
        view.updated(state, {}, 80)
    soon = silent.new_connections()
    monkeypatch.setattr("jobs.queue.overview.SILENT_SECONDS", 0.0)
    view.updated(state, {}, 80)

    assert (soon, silent.new_connections()) == (1, 1)
    assert view.forecast == NEXT


def test_an_embedded_redis_that_is_silent_is_asked_once_whether_the_queues_are_paused(
    silent: SilentServer, tmp_path: Path
) -> None:
    folder = tmp_path / "alone" / "redis"
    folder.mkdir(parents=True)
    (folder / "url").write_text(silent.url)
    (folder / "host.json").write_text(json.dumps({"host": socket.gethostname()}))

    paused = QueueCheck(Settings(storage=folder.parent)).are_known_paused()

    assert (paused, silent.new_connections()) == (False, 1)
