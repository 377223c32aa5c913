"""The page, served by a real server over loopback, and looked at in a real browser."""

import asyncio
import html
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import uvicorn

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.stop_request import StopRequest
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from jobs.web.access import Access
from jobs.web.app import Page, create_app
from jobs.web.changes import stamps
from tests.browser import CHROMIUM, RENDERED, Browser, open_browser
from tests.conftest import Say
from tests.silent_server import silent_server
from tests.stack import FakeSpec, eventually
from trainer.specs import SearchSpec, build

TOKEN = "the-token-of-the-test"
MARKUP = "<img src=x onerror=alert(1)>"
AXE = os.environ.get("AXE_CORE")
OF_LABEL = {"auroc": 0.9, "sensitivity": None, "specificity": 0.8, "intervals": {"auroc": [0.8, 0.95]}}
MULTI_LABEL = {
    "accuracy": 0.9, "auroc": 0.85, "loss": 0.3, "split": "test", "n": 40, "known": 70, "multi_label": True,
    "classes": ["effusion", "nodule"],
    "labels": {name: {**OF_LABEL, "n": 35, "positives": 7, "unknown": 5} for name in ("effusion", "nodule")},
}  # fmt: skip
ADDRESSES = ["/", "/compare", "/models", "/queue", "/changes", "/static/page.js", "/static/report.css", "/nothing"]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    def json(self):
        return json.loads(self.text)


@dataclass
class Client:
    """Asks a page as a browser with the token would; `headers` replace the cookie."""

    port: int
    cookie: dict[str, str] = field(default_factory=lambda: {"cookie": f"nightshift_token={TOKEN}"})

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=self.cookie | headers)

    def post(self, path: str, **fields: str) -> Answer:
        form = {"content-type": "application/x-www-form-urlencoded"}
        return self.ask("POST", path, headers=self.cookie | form, body=urlencode(fields))

    def ask(self, method: str, path: str, *, headers: dict[str, str] | None = None, body: str | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        text = "" if "event-stream" in found.get("content-type", "") else answer.read().decode()
        connection.close()
        return Answer(answer.status, found, text)

    def json(self, path: str) -> dict:
        return self.get(path, accept="application/json").json()


class QuickServer(uvicorn.Server):
    """A server that ends at once when nobody is connected, where uvicorn waits two tenths of a second."""

    async def main_loop(self) -> None:
        await self.on_tick(0)  # sets the default headers
        while not self.should_exit:
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
            await server.wait_closed()


@pytest.fixture
def serving(settings: Settings) -> Iterator[Callable[..., Client]]:
    """Serve the page of the storage from a thread."""
    running = []

    def start(**changes: object) -> Client:
        values = {"settings": settings, "access": Access(token=TOKEN), "hosts": ["127.0.0.1", "::1"], **changes}
        bound = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(Page(**values)), log_level="error", lifespan="off", ws="none",
                                timeout_graceful_shutdown=1)  # fmt: skip
        server = QuickServer(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        running.append((server, thread, bound))
        return Client(bound.getsockname()[1])

    yield start
    for server, thread, bound in running:
        server.should_exit = True
        thread.join()
        bound.close()


@pytest.fixture
def client(serving: Callable[..., Client]) -> Client:
    return serving()


def queued(settings: Settings, **request: object) -> RunPaths:
    return RunPaths.of(settings.storage, submit(settings, FakeSpec(), JobRequest(**request)))


def with_state(paths: RunPaths, state: str, why: str | None = None, **changes: object) -> None:
    with run_state.changing(paths) as found:
        run_state.write_state(paths, found.with_state(state, why, **changes))


def form_token(client: Client, paths: RunPaths) -> str:
    return re.search(r'name="form_token" value="([0-9a-f]+)"', client.get(f"/runs/{paths.run_id}").text)[1]


def search_of(settings: Settings, values: list[list[float]], *, finished: int = 0, name: str = "night") -> RunPaths:
    """A running search with these values of each trial by epoch; the first trials have finished."""
    paths = queued(settings, name=name)
    write_json(paths.spec, build(SearchSpec, shards="/shards", best_by="loss").to_json())
    with_state(paths, "running", attempt=1, kind="search")
    lines = []
    for number, epochs in enumerate(values):
        config = {"lr": 10.0 ** -(2 + number % 3), "dropout": 0.1 * (number % 6), "head_width": 128}
        lines.append({"event": "started", "trial": number, "config": config, "attempt": 1})
        lines += [
            {"event": "epoch", "trial": number, "epoch": epoch, "value": value, "seconds": 1.0, "attempt": 1}
            for epoch, value in enumerate(epochs, 1)
        ]
        lines += [{"event": "finished", "trial": number, "why": "epochs", "attempt": 1}] if number < finished else []
    paths.trials.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


# Who may use the page


@pytest.mark.parametrize("path", [*ADDRESSES, "/runs/train-20260102-030405-abcdef", "/?token=wrong", "/?token=%C3%A9"])
def test_without_the_token_every_address_answers_401(client, path):
    answer = client.ask("GET", path)

    assert answer.status == 401
    assert answer.text == "Open the address that `nightshift ui` printed: it contains the token of this page.\n"


@pytest.mark.parametrize("act", ["cancel", "kill", "retry"])
def test_without_the_token_no_act_is_taken(client, settings, act):
    paths = queued(settings)

    answer = client.ask(
        "POST", f"/runs/{paths.run_id}/{act}?token={TOKEN}", body=f"form_token={Access(token=TOKEN).form_token}"
    )

    assert answer.status == 401
    assert run_state.read_state(paths).state == "queued"


def test_the_token_in_the_address_becomes_a_cookie_and_leaves_the_address(client):
    answer = client.ask("GET", f"/?state=queued&token={TOKEN}")

    assert answer.status == 303
    assert answer.headers["location"] == "/?state=queued"
    assert answer.headers["set-cookie"] == f"nightshift_token={TOKEN}; HttpOnly; Path=/; SameSite=lax"
    assert client.get("/?state=queued").status == 200


def test_the_redirect_stays_on_this_host(client):
    assert client.ask("GET", f"//evil.example/?token={TOKEN}").headers["location"] == "/evil.example/"


def test_over_https_the_cookie_is_never_sent_in_plain_text(serving):
    client = serving(access=Access(token=TOKEN, is_secure=True))

    assert client.ask("GET", f"/?token={TOKEN}").headers["set-cookie"].endswith("; Secure")


def test_a_program_gives_the_token_as_a_bearer_token(client):
    asked = {"accept": "application/json"}

    assert client.ask("GET", "/", headers=asked | {"authorization": f"Bearer {TOKEN}"}).json() == {
        "runs": [],
        "older": None,
    }
    assert client.ask("GET", "/", headers=asked | {"authorization": "Bearer wrong"}).status == 401
    assert client.ask("GET", "/", headers=asked | {"authorization": f"Basic {TOKEN}"}).status == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "[::2]", "a[", ""])
def test_another_site_whose_name_leads_here_is_refused(client, host):
    answer = client.get("/", host=host)

    assert answer.status == 400
    assert answer.text.startswith(f"{host} is not an address of this page; open the one that `nightshift ui` printed")
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:8280", "[::1]:8280", "GPU-1:443"])
def test_an_address_of_the_page_may_have_any_port_and_case(serving, host):
    assert serving(hosts=["127.0.0.1", "::1", "gpu-1"]).get("/", host=host).status == 200


@pytest.mark.parametrize("path", ADDRESSES)
def test_every_answer_restricts_the_browser(client, path):
    headers = client.get(path).headers

    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_a_page_needs_nothing_from_another_host_and_has_no_inline_script(client, settings):
    search = search_of(settings, [[2.0, 1.0], [3.0]])

    for path in ("/", "/models", "/queue", f"/runs/{search.run_id}"):
        page = client.get(path).text
        links = re.findall(r"""\b(?:src|href|action)=["']([^"']*)""", page)
        assert all(link.startswith(("/", "#", "?", "data:,")) and not link.startswith("//") for link in links)
        assert re.findall(r"<script[^>]*>", page) == ['<script src="/static/page.js" defer>']
        assert not re.search(r"\son[a-z]+=", page)


# Acts


def test_a_queued_run_is_cancelled_by_the_form_of_the_page(client, settings):
    paths = queued(settings)

    answer = client.post(f"/runs/{paths.run_id}/cancel", form_token=form_token(client, paths))

    assert (answer.status, answer.headers["location"]) == (303, f"/runs/{paths.run_id}")
    assert run_state.read_state(paths).state == "cancelled"


@pytest.mark.parametrize(
    ("act", "text", "left"),
    [("cancel", "Cancel requested: the run stops after its next checkpoint.", ["kill"]),
     ("kill", "Kill requested.", ["kill"])],
)  # fmt: skip
def test_a_running_run_is_asked_to_stop_and_the_page_says_so(client, settings, act, text, left):
    paths = queued(settings)
    with_state(paths, "running", attempt=1)

    client.post(f"/runs/{paths.run_id}/{act}", form_token=form_token(client, paths))

    page = client.get(f"/runs/{paths.run_id}").text
    assert StopRequest.read(paths.stop, 1) == StopRequest("cancel", 1, now=act == "kill")
    assert text in page
    assert re.findall(r'action="/runs/[^/]+/(\w+)"', page) == left


@pytest.mark.parametrize(
    ("kind", "state", "buttons"),
    [
        ("train", "queued", ["Cancel"]),
        ("train", "running", ["Cancel after the next checkpoint", "Kill"]),
        ("evaluate", "running", ["Cancel", "Kill"]),
        ("search", "cancelled", ["Retry from the last checkpoint"]),
        ("predict", "lost", ["Retry"]),
        ("train", "succeeded", []),
        ("train", "paused", ["Cancel"]),
    ],
)
def test_the_buttons_are_those_that_the_state_allows(client, settings, kind, state, buttons):
    paths = queued(settings)
    with_state(paths, state, attempt=1, kind=kind)

    assert re.findall(r"<button>([^<]+)</button>", client.get(f"/runs/{paths.run_id}").text) == buttons


def test_a_failed_run_is_queued_again(client, settings):
    paths = queued(settings)
    with_state(paths, "failed", "CUDA out of memory")

    answer = client.post(f"/runs/{paths.run_id}/retry", form_token=form_token(client, paths))

    assert answer.status == 303
    assert run_state.read_state(paths).state == "queued"


@pytest.mark.parametrize("forged", ["", "0" * 64, Access(token="another").form_token, "é"])
@pytest.mark.parametrize("act", ["cancel", "kill", "retry"])
def test_an_act_without_the_form_token_of_the_page_is_refused(client, settings, act, forged):
    paths = queued(settings)
    before = paths.state.read_bytes()

    answer = client.post(f"/runs/{paths.run_id}/{act}", form_token=forged)

    assert answer.status == 403
    assert "does not have this page&#39;s form token; load the page again" in answer.text
    assert paths.state.read_bytes() == before


def test_an_act_that_is_not_possible_is_one_line(client, settings):
    paths = queued(settings)
    token = form_token(client, paths)
    with_state(paths, "succeeded")

    answer = client.post(f"/runs/{paths.run_id}/cancel", form_token=token)

    assert answer.status == 409
    assert f"{paths.run_id} has already ended: it is succeeded" in answer.text


def test_a_long_form_is_refused(client, settings):
    answer = client.post(f"/runs/{queued(settings).run_id}/cancel", form_token="0" * 17_000)

    assert answer.status == 403
    assert "the form is longer than 16384 bytes" in answer.text


def test_a_read_only_page_has_no_buttons_and_takes_no_act(serving, settings):
    client, paths = serving(is_read_only=True), queued(settings)

    answer = client.post(f"/runs/{paths.run_id}/cancel", form_token=Access(token=TOKEN).form_token)

    assert 'method="post"' not in client.get(f"/runs/{paths.run_id}").text
    assert answer.status == 403
    assert run_state.read_state(paths).state == "queued"


# What it shows


def test_json_has_what_the_commands_print(client, settings, say: Say):
    search = search_of(settings, [[2.0, 1.5], [1.0]])
    queued(settings, tags=("chest",), note="first", owner="mira")

    page = client.json(f"/runs/{search.run_id}")

    assert client.json("/")["runs"] == json.loads(say("list", "--json")[1])
    assert page.pop("trials") == json.loads(say("trials", search.run_id, "--json")[1])
    assert (page.pop("log"), page.pop("warnings")) == ("", [])
    assert page == json.loads(say("show", search.run_id, "--json")[1])
    assert client.json("/queue")["queues"] == json.loads(say("queue", "show", "--json")[1])


def test_texts_of_people_and_of_damaged_files_are_escaped(client, settings):
    paths = queued(settings, note=MARKUP)
    with_state(paths, "failed", MARKUP, job_worker=MARKUP, owner=MARKUP)
    paths.log.write_text(MARKUP)
    write_json(paths.spec, {"kind": "train", MARKUP: MARKUP})

    pages = [client.get(path).text for path in ("/", f"/runs/{paths.run_id}", f"/?{urlencode({'name': MARKUP})}")]

    assert all("<img" not in page for page in pages)
    assert pages[1].count("&lt;img") == 7


def test_a_long_list_has_a_link_to_older_runs_that_keeps_the_filter(client, settings, monkeypatch):
    monkeypatch.setattr("jobs.web.overview.RUNS_SHOWN", 3)
    ids = [queued(settings, tags=("chest",)).run_id for _ in range(5)]
    queued(settings)

    first = client.json("/?tag=chest")
    older = re.search(r'<a rel="next" href="([^"]+)"', client.get("/?tag=chest").text)[1].replace("&amp;", "&")
    second = client.json(f"/{older}")

    assert [run["id"] for run in first["runs"]] == sorted(ids, key=run_state.age_key)[:-4:-1]
    assert [run["id"] for run in second["runs"]] == sorted(ids, key=run_state.age_key)[1::-1]
    assert second["older"] is None


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/runs/train-20260102-030405-abcdef", 404, "run train-20260102-030405-abcdef does not exist"),
        ("/runs/train-20260102-030405-abcdef/report", 404, "has no report"),
        ("/runs/..%2f..%2fetc", 404, "Not Found"),
        ("/runs/etc", 404, "&#39;etc&#39; is not a run id"),
        ("/static/../app.py", 404, "Not Found"),
        ("/?state=bad", 400, "state=&#39;bad&#39; is not one of queued, scheduled, running"),
        ("/?kind=bad", 400, "kind=&#39;bad&#39; is not one of train, evaluate"),
        ("/?before=bad", 400, "before=&#39;bad&#39; is not a run id"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_clear_line(client, path, status, text):
    answer = client.get(path)

    assert (answer.status, text in answer.text) == (status, True), answer.text


def test_a_page_whose_storage_is_away_does_not_say_that_there_are_no_runs(client, settings, tmp_path):
    run_id = submit(settings, FakeSpec())
    away = settings.runs.rename(tmp_path / "away")

    answers = [client.get(path) for path in ("/", "/models", f"/runs/{run_id}")]
    away.rename(settings.runs)

    assert [answer.status for answer in answers] == [503] * 3
    reason = f"the storage {settings.storage} cannot be read: {settings.runs} does not exist; mount the share again"
    assert all(reason in answer.text for answer in answers)
    assert client.get("/").status == 200


def test_a_damaged_run_is_in_the_list_and_its_page_says_the_cure(client, settings):
    damaged, good = queued(settings), queued(settings)
    damaged.state.write_text("{")

    answer = client.get(f"/runs/{damaged.run_id}")

    assert [run["state"] for run in client.json("/")["runs"]] == ["queued", "damaged"]
    assert client.get(f"/runs/{good.run_id}").status == 200
    assert answer.status == 500
    assert f"`nightshift delete --force {damaged.run_id}` deletes the run" in answer.text


GOOD = {"accuracy": 0.9, "split": "test", "n": 10}
RESULTS = [
    {**GOOD, "accuracy": "high"}, {**GOOD, "accuracy": float("nan")}, {**GOOD, "accuracy": [1]},
    {**GOOD, "intervals": []}, {**GOOD, "intervals": {"accuracy": [0.1]}}, {**GOOD, "intervals": {"accuracy": "ab"}},
    {**GOOD, "out_of_fold": {}}, {**GOOD, "at_prevalence": {}}, {**GOOD, "threshold_choices": [1]},
    {**GOOD, "classes": [["a"]], "per_class": {}}, {**GOOD, "labels": [1]}, {**GOOD, "multi_label": True},
]  # fmt: skip
FILES = [
    *[("result.json", json.dumps({"kind": "train", "seconds": 1.0, "metrics": metrics})) for metrics in RESULTS],
    ("result.json", '{"kind": "train", "seconds": NaN, "metrics": {}}'),
    ("result.json", '{"kind": "train", "seconds": 1, "metrics": {"accuracy": 0.5}, "baselines": 5}'),
    ("result.json", '{"kind": "train", "seconds": 1, "metrics": {}, "cross_validation": [1], "timing": [2]}'),
    ("metrics.jsonl", '{"epoch": 1, "valid_accuracy": 95, "attempt": 1}\n'),
    ("metrics.jsonl", '{"epoch": 1, "valid_loss": 1.75e308, "train_loss": -1.7e308, "attempt": 1}\n'),
    ("metrics.jsonl", '{"epoch": 1, "valid_loss": ' + "9" * 400 + ', "attempt": 1}\n'),
    ("spec.json", '{"kind": "train", "best_by": "f1", "epochs": []}'),
    ("spec.json", '["kind"]'),
    ("progress.json", '{"epoch": 1, "epochs": 2, "phase": [], "total": 5, "done": NaN, "other": NaN}'),
    ("job.json", '{"priority": {"a": 1}}'),
    ("best/manifest.json", '{"files": 3}'),
    ("stop.json", "[]"),
    ("log.txt", "\udce9\r\x1b[31mred"),
]


@pytest.mark.parametrize("state", ["running", "succeeded"])
@pytest.mark.parametrize(("name", "content"), FILES, ids=range(len(FILES)))
def test_a_run_with_a_damaged_file_is_shown_and_hides_no_other_run(client, settings, name, content, state):
    paths = queued(settings)
    write_json(
        paths.metrics.with_name("metrics.jsonl"), {"epoch": 1, "valid_loss": 1.0, "train_loss": 1.0, "attempt": 1}
    )
    with_state(paths, state, attempt=1)
    file = paths.folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content.encode(errors="surrogateescape"))

    answers = [client.get(path) for path in ("/", f"/runs/{paths.run_id}")]
    programs = [client.get(path, accept="application/json") for path in ("/", f"/runs/{paths.run_id}")]

    assert [answer.status for answer in (*answers, *programs)] == [200] * 4
    assert all(paths.run_id in answer.text for answer in answers)
    assert [answer.json() is not None for answer in programs] == [True, True]


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "started", "trial": 7, "config": {}, "attempt": 1}',
        '{"event": "started", "trial": 7, "config": {"lr": 1e999}, "attempt": 1}',
        '{"event": "epoch", "trial": 0, "epoch": 9, "value": 1.7e308, "attempt": 1}',
        '{"event": "epoch", "trial": 0, "epoch": 9, "value": -1.7e308, "seconds": 1e300, "attempt": 1}',
        '{"event": "epoch", "trial": 0, "epoch": ' + "9" * 30 + ', "value": 1.0, "attempt": 1}',
    ],
    ids=range(5),
)
def test_a_search_with_odd_trials_is_shown(client, settings, line):
    search = search_of(settings, [[2.0, 1.0], [3.0]])
    with search.trials.open("a") as file:
        file.write(line + "\n")

    page, program = (
        client.get(f"/runs/{search.run_id}"),
        client.get(f"/runs/{search.run_id}", accept="application/json"),
    )

    assert (page.status, program.status) == (200, 200)
    assert program.json()["id"] == search.run_id


def test_a_search_by_an_unknown_metric_is_of_a_newer_version_and_not_damaged(client, settings, say):
    search = search_of(settings, [[2.0]])
    write_json(search.spec, {"kind": "search", "best_by": "f1"})

    page, (code, _, err) = client.get(f"/runs/{search.run_id}").text, say("trials", search.run_id)

    expected = f"{search.run_id} is ranked by 'f1', which this version does not know; update Nightshift"
    assert expected in html.unescape(page)
    assert "is damaged" not in page
    assert (code, err) == (1, f"Error: {expected}\n")


def test_a_reason_that_is_not_utf_8_is_shown(client, settings):
    paths = queued(settings)
    with_state(paths, "failed", "cannot read b\udce9.png")

    assert "cannot read b?.png" in client.get("/").text
    assert client.json("/")["runs"][0]["why"] == "cannot read b\udce9.png"


def test_the_labels_of_a_multi_label_run_are_a_table(client, settings):
    paths = queued(settings)
    write_json(paths.result, {"kind": "train", "seconds": 1.0, "metrics": MULTI_LABEL})
    with_state(paths, "succeeded", kind="train")

    page = client.get(f"/runs/{paths.run_id}").text

    assert "test split, 40 images, 70 known targets; macro: mean of the labels, micro: all known targets" in page
    cells = ["0.9000 (0.8000 to 0.9500)", "undefined", "0.8000", "7 of 35", "5"]
    row = '<tr><th scope="row">nodule</th>' + "".join(f'<td class="n">{text}</td>' for text in cells) + "</tr>"
    assert row in page


def test_a_run_that_failed_shows_no_figures(client, settings):
    paths = queued(settings)
    write_json(paths.result, {"kind": "train", "seconds": 1.0, "metrics": {"accuracy": 0.9, "split": "test"}})
    with_state(paths, "failed", "it was replaced")

    assert "Main metrics" not in client.get(f"/runs/{paths.run_id}").text


def test_only_the_end_of_a_long_log_is_sent_and_what_a_progress_bar_shows_last(client, settings):
    paths = queued(settings)
    paths.log.write_text("first\n" + "".join(f"\r{share} %" for share in range(20_000)) + "\nlast\n")

    assert client.json(f"/runs/{paths.run_id}")["log"] == "last\n"


def test_a_stray_file_among_the_pending_runs_does_no_harm(client, settings):
    (settings.storage / "pending").mkdir(exist_ok=True)
    (settings.storage / "pending" / ".nfs0001").touch()

    assert stamps(settings.storage, None) == stamps(settings.storage, None)
    assert client.get("/changes").status == 200


def test_events_of_a_run_that_does_not_exist_are_not_found(client):
    assert client.get("/runs/train-20260102-030405-abcdef/changes").status == 404


def test_the_report_can_run_nothing_and_load_nothing(client, settings):
    paths = queued(settings)
    paths.report.write_text("<h1>Report</h1><script>alert(1)</script>")

    answer = client.get(f"/runs/{paths.run_id}/report")

    assert answer.text.startswith("<h1>Report</h1>")
    assert answer.headers["content-security-policy"].startswith(
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; "
    )


def test_without_redis_runs_are_shown_and_the_queue_says_why_not(serving, settings):
    closed = Settings(storage=settings.storage, redis_url="redis://127.0.0.1:1")
    paths, client = queued(settings), serving(settings=closed)

    page = client.json("/queue")

    assert client.get(f"/runs/{paths.run_id}").status == 200
    assert page["queues"] is None
    assert page["warning"].startswith("Redis at redis://127.0.0.1:1 does not answer (")


def test_values_far_from_the_best_are_left_out_of_the_curves_and_counted(client, settings):
    search = search_of(settings, [[2.0, 1.0, 1e6], [1.5, 1e9]])

    page = client.get(f"/runs/{search.run_id}").text

    assert "loss by epoch, 3 worse values are outside the axis" in page  # 2.0, 1e6 and 1e9: best values are 1.0 and 1.5
    assert page.count('class="dot"') == 2


def test_the_page_of_a_search_shows_what_its_options_do_once_enough_trials_have_ended(client, settings):
    few = search_of(settings, [[2.0], [1.0], [1.5], [3.0]], finished=1, name="few")
    many = search_of(settings, [[1.0 + number % 3] for number in range(9)], finished=9)

    equal = search_of(settings, [[1.0]] * 5, finished=5, name="equal")

    pages = [client.get(f"/runs/{paths.run_id}").text for paths in (few, many, equal)]

    assert 'aria-label="4 trials over lr, dropout, head_width, loss"' in pages[0]
    assert "The importance of the options is shown from 4 trials that ran all their epochs; there is 1." in pages[0]
    assert 'aria-label="9 trials over lr, dropout, head_width, loss"' in pages[1]
    assert "of loss between the 9 trials that ran all their epochs which each option alone explains" in pages[1]
    assert "the 5 trials that ran all their epochs do not differ in loss." in pages[2]
    assert re.search(r'aria-label="lr \d+ percent, dropout \d+ percent, head_width 0 percent"', pages[1])


def test_a_change_of_the_run_is_told_to_an_open_page(client, settings):
    paths = queued(settings)
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.request("GET", f"/runs/{paths.run_id}/changes", headers=client.cookie)
    stream = connection.getresponse()
    assert stream.readline() == b"retry: 3000\n"

    with_state(paths, "cancelled")

    assert (stream.readline(), stream.readline()) == (b"\n", b"data: changed\n")
    connection.close()


# The commands


def test_the_command_prints_the_address_and_ends_at_ctrl_c(settings):
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "ui", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "", "NIGHTSHIFT_STORAGE": str(settings.storage)},
    )
    address = urlsplit(process.stdout.readline().strip())
    client = Client(address.port)

    assert (address.scheme, address.hostname, address.path) == ("http", "127.0.0.1", "/")
    assert client.ask("GET", "/").status == 401
    assert client.ask("GET", f"/?{address.query}").status == 303
    bearer = {"authorization": f"Bearer {address.query.removeprefix('token=')}"}
    connection = http.client.HTTPConnection("127.0.0.1", address.port)
    connection.request("GET", "/changes", headers=bearer)  # an open page
    stream = connection.getresponse()
    assert stream.readline() == b"retry: 3000\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ""
    stream.close()
    connection.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is every address of this machine; add --public-url with the https"),
        (["--host", "::", "--tls-cert", __file__, "--tls-key", __file__], "--host :: is every address of this machine"),
        (["--public-url", "https://[x"], "--public-url 'https://[x' is not an https address without a path"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 would send the token over the network unencrypted"),
        (["--tls-cert", __file__], "--tls-cert and --tls-key belong together; give both"),
        (["--public-url", "http://gpu-1"], "--public-url 'http://gpu-1' is not an https address without a path"),
        (["--public-url", "https://gpu-1/page"], "--public-url 'https://gpu-1/page' is not an https address"),
    ],
)  # fmt: skip
def test_what_would_send_the_token_in_plain_text_is_refused(say: Say, words, error):
    code, _, said = say("ui", *words)

    assert code == 2
    assert error in said


def test_a_port_that_is_taken_and_a_file_that_is_no_certificate_are_one_line(say: Say):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken_said = say("ui", "--port", str(port))
    certificate_said = say("ui", "--port", "0", "--tls-cert", __file__, "--tls-key", __file__)

    assert taken_said == (
        1,
        "",
        f"Error: 127.0.0.1 port {port} cannot be opened (Address already in use); choose another port\n",
    )
    assert certificate_said[0] == 1
    assert certificate_said[2] == (
        f"Error: --tls-cert {__file__} and --tls-key {__file__} are not a certificate and its key in PEM format, or "
        "the key is encrypted; give files that your web server could use\n"
    )


def test_a_host_that_is_not_of_this_machine_is_one_line(say: Say):
    code, _, error = say("ui", "--host", "nowhere.invalid", "--public-url", "https://gpu-1")

    assert (code, error) == (
        1, "Error: --host nowhere.invalid has no address; give a name or IP address of this machine\n"
    )  # fmt: skip


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with open_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_every_page_without_error_or_overflow(browser, client, settings, width):
    search = search_of(settings, [[2.0, 1.0], [1.5, 1.2], [3.0]])
    queued(settings, name="a" * 63, tags=("chest", "night"), owner="mira", note="b" * 200)
    browser.size(width, 900)
    browser.errors.clear()

    for path in ("/", "/models", "/queue", f"/runs/{search.run_id}"):
        browser.open(f"http://127.0.0.1:{client.port}{path}?token={TOKEN}")
        assert eventually(lambda: browser.evaluate(RENDERED) and browser.evaluate("!!document.querySelector('main')"))
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, path
        assert browser.errors == [], path


def test_a_waiting_run_is_said_to_wait_for_the_queues_while_they_are_paused(client, settings, say):
    paths = queued(settings)
    paused = "the queues are paused; `nightshift queue resume` opens them"

    say("queue", "pause")
    texts = [client.get(path).text for path in ("/", f"/runs/{paths.run_id}")]
    say("queue", "resume")

    assert [paused in text for text in texts] == [True, True]
    assert paused not in client.get("/").text


def test_the_pages_ask_a_silent_redis_once_whether_the_queues_are_paused(serving, settings, monkeypatch):
    monkeypatch.setattr("jobs.queue.overview.SILENT_SECONDS", float("inf"))
    paths = queued(settings)

    with silent_server() as silent:
        client = serving(settings=replace(settings, redis_url=silent.url))
        statuses = [client.get(path).status for path in ("/", f"/runs/{paths.run_id}", "/")]
        connections = silent.new_connections()

    assert (statuses, connections) == ([200, 200, 200], 1)


@pytest.mark.skipif(AXE is None, reason="AXE_CORE does not name axe.min.js of the npm package axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_of_accessibility_on_any_page(browser, serving, settings, scheme):
    client = serving(fork=lambda *_: "")
    search = search_of(settings, [[1.0 + number % 3] for number in range(9)], finished=9)
    done, other = queued(settings, tags=("chest",), note="first"), queued(settings)
    for paths in (done, other):
        with_state(paths, "succeeded", kind="train")
    write_json(done.result, {"kind": "train", "seconds": 1.0, "metrics": MULTI_LABEL})
    waiting, failed = queued(settings), queued(settings)
    with_state(failed, "failed", "the disk is full; free some space")
    acts = [f"/runs/{done.run_id}/{act}" for act in ("fork", "edit", "promote")]
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    for width in (400, 1400):
        browser.size(width, 900)
        runs = [f"/runs/{run.run_id}" for run in (search, done, waiting, failed)]
        for path in ("/", "/compare", "/models", "/queue", *runs, *acts, "/runs/no-run"):
            browser.open(f"http://127.0.0.1:{client.port}{path}?token={TOKEN}")
            assert eventually(
                lambda p=path: browser.evaluate(
                    f"location.pathname === {p!r} && {RENDERED} && !!document.querySelector('main')"
                )
            )
            browser.evaluate(Path(AXE).read_text())
            assert browser.evaluate("axe.run().then(found => found.violations.map(one => one.help))") == [], path


def test_a_link_on_another_site_opens_the_page(browser, client):
    other = f"http://localhost:{client.port}/static/page.js"  # another site: the page's is 127.0.0.1
    browser.open(other)
    link = f"http://127.0.0.1:{client.port}/?token={TOKEN}"

    browser.evaluate(f"location.href = '{link}'")

    assert eventually(lambda: browser.evaluate("document.querySelector('h1')?.textContent") == "Runs")


def test_a_page_that_nobody_sees_gives_its_connection_back(browser, client, settings):
    paths = queued(settings)
    browser.open(f"http://127.0.0.1:{client.port}/?token={TOKEN}")
    live = "document.getElementById('connection')?.textContent"
    assert eventually(lambda: browser.evaluate(live) == "Live")

    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true}); "
    changed = "document.dispatchEvent(new Event('visibilitychange'))"
    browser.evaluate(hide % "true" + changed)
    assert browser.evaluate("source === null")
    with_state(paths, "failed", "disk full")
    browser.evaluate(hide % "false" + changed)

    assert eventually(lambda: browser.evaluate("document.querySelector('.runs .state')?.textContent") == "failed")


def test_the_focus_stays_on_the_button_while_the_run_goes_on(browser, client, settings):
    paths = queued(settings, name="night")
    with_state(paths, "running", attempt=1)
    browser.open(f"http://127.0.0.1:{client.port}/runs/{paths.run_id}?token={TOKEN}")
    assert eventually(lambda: browser.evaluate("document.getElementById('connection')?.textContent") == "Live")
    browser.evaluate("[...document.querySelectorAll('.acts button')].at(-1).focus()")

    write_json(paths.progress, {"phase": "train", "epoch": 2, "epochs": 5, "done": 1, "total": 4, "attempt": 1})

    assert eventually(lambda: "epoch 2/5" in browser.evaluate("document.querySelector('.summary').textContent"))
    assert browser.evaluate("document.activeElement.textContent") == "Kill"


def test_an_open_page_follows_its_run_and_keeps_the_focus_and_the_chosen_runs(browser, client, settings):
    for run in (queued(settings), queued(settings)):
        with_state(run, "succeeded", kind="train")
    paths = queued(settings, name="night")
    browser.open(f"http://127.0.0.1:{client.port}/?token={TOKEN}")
    row = "document.querySelector('.runs .state')?.textContent"
    assert eventually(lambda: browser.evaluate(row) == "queued")
    assert eventually(lambda: browser.evaluate("document.getElementById('connection').textContent") == "Live")
    browser.evaluate("document.querySelector('.runs input').checked = true")
    browser.evaluate("document.querySelector('.runs a').focus()")

    with_state(paths, "failed", "disk full")

    assert eventually(lambda: browser.evaluate(row) == "failed")
    assert browser.evaluate("document.querySelector('.doing').textContent").strip() == "disk full"
    assert browser.evaluate("document.activeElement.textContent") == "night"
    assert browser.evaluate("[...document.querySelectorAll('.runs input')].map(one => one.checked)") == [True, False]


def test_the_button_of_the_page_cancels_the_run(browser, client, settings):
    paths = queued(settings)
    browser.open(f"http://127.0.0.1:{client.port}/runs/{paths.run_id}?token={TOKEN}")
    assert eventually(lambda: browser.evaluate("document.querySelector('.acts button')?.textContent") == "Cancel")

    browser.evaluate("document.querySelector('.acts button').click()")

    assert eventually(lambda: run_state.read_state(paths).state == "cancelled")
    assert eventually(
        lambda: (
            browser.evaluate("document.querySelector('.acts button')?.textContent") == "Retry from the last checkpoint"
        )
    )
