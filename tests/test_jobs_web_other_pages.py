"""The pages of the queue and of the models in use."""

import html
import re
from pathlib import Path

import pytest

from cluster.settings import Settings
from jobs.queue import embedded_redis, schedules
from jobs.queue.connection import connect
from jobs.queue.queues import REFUSED
from jobs.queue.worker_list import WorkerRecord
from jobs.runs.promotions import Promotion, add
from jobs.runs.request import JobRequest
from jobs.runs.state import now
from jobs.web.other_pages import queue_page
from tests import web_page as page
from tests.conftest import Say
from tests.stack import FakeSpec
from tests.web_page import Client, queued

serving, client = page.serving, page.client


def worker_with(run_id: str) -> WorkerRecord:
    beat = now()
    return WorkerRecord(name="gpu-1", state="busy", run=run_id, queues=("high",), since=beat, beat=beat)


def test_the_page_of_the_queue_says_why_runs_wait_as_the_command_does(client: Client, settings: Settings, say: Say):
    queued(settings)
    with connect(settings) as connection:
        connection.lpush(REFUSED, "<b>foreign</b>")

    shown, said = html.unescape(client.get("/queue").text), say("queue", "show")[1]

    faults = ["1 foreign entry was refused, the last: <b>foreign</b>",
              "1 run waits in the queue normal, which no job worker serves; start one with `nightshift worker`, which "
              "serves all queues"]  # fmt: skip
    assert all(f"{fault}\n" in said for fault in faults)
    assert re.findall(r'<p class="warning">(.+)</p>', shown) == faults


def test_the_page_of_the_queue_starts_no_redis(tmp_path: Path):
    settings = Settings(storage=tmp_path / "storage").with_storage_ready()

    found = queue_page(settings)

    assert found.warning == "no Redis runs for this storage; `nightshift up` starts it"
    assert embedded_redis.running(settings.storage) is None


def test_a_job_worker_has_the_name_of_its_run_and_the_age_of_its_heartbeat(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    named, other = queued(settings, name="night"), queued(settings)
    workers = [worker_with(named.run_id), worker_with(other.run_id), worker_with("train-20260102-030405-abcdef")]
    monkeypatch.setattr("jobs.web.other_pages.live_workers", lambda _: workers)

    shown = client.get("/queue").text

    assert re.findall(r'<a href="/runs/([^"]+)">([^<]+)</a>', shown) == [
        (named.run_id, "night"),
        (other.run_id, other.run_id),
        ("train-20260102-030405-abcdef", "train-20260102-030405-abcdef"),
    ]
    assert len(re.findall(r">\d+s ago</td>", shown)) == len(workers)


def test_the_next_time_of_a_schedule_is_in_words(client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "UTC")
    schedules.add(settings, "nightly", "0 20 * * *", FakeSpec(), JobRequest())

    shown = client.get("/queue").text

    assert re.search(r">\d{4}-\d\d-\d\d 20:00 UTC</td>", shown)


def test_a_model_in_use_has_the_name_of_its_run_and_a_model_of_a_folder_has_no_link(client: Client, settings: Settings):
    run_id = queued(settings, name="night").run_id
    places = {"weights": "0" * 64, "who": "mira", "when": now()}
    old = Promotion(model="/models/old", folder="/models/old", **places)
    add(settings.storage, "chest", old, after=None)
    add(settings.storage, "chest", Promotion(model=run_id, folder="/runs", **places), after=old)

    shown = client.get("/models").text

    link = f'<a href="/runs/{run_id}">night</a>'
    cells = re.findall(r'<th scope="row">[^<]*</th><td>(.*?)\n?</td>', shown)
    assert shown.count(link) == 2
    assert cells == [link, "/models/old"]
