"""The page, served by a real server over loopback, and looked at in a real browser."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from tests.browser import CHROMIUM, RENDERED, Browser, open_browser
from tests.conftest import Say
from tests.stack import FakeSpec, eventually

TOKEN = "the-token-of-the-test"
MARKUP = "<img src=x onerror=alert(1)>"
ADDRESSES = ["/", "/models", "/queue", "/changes", "/static/page.js", "/static/report.css", "/nothing"]


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


@pytest.fixture
def serving(settings: Settings) -> Iterator[Callable[..., Client]]:
    """Serve the page of the storage from a thread."""
    running = []

    def start(**changes: object) -> Client:
        values = {"settings": settings, "access": Access(token=TOKEN), "hosts": ["127.0.0.1"], **changes}
        bound = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(Page(**values)), log_level="error", lifespan="off", ws="none",
                                               timeout_graceful_shutdown=1))  # fmt: skip
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


def search_of(settings: Settings, values: list[list[float]]) -> RunPaths:
    """A running search with these values of each trial by epoch."""
    paths = queued(settings, name="night")
    write_json(paths.spec, {"kind": "search", "best_by": "loss"})
    with_state(paths, "running", attempt=1)
    lines = []
    for number, epochs in enumerate(values):
        config = {"lr": 10.0**-number, "dropout": 0.1 * number, "head_width": 128}
        lines.append({"event": "started", "trial": number, "config": config, "attempt": 1})
        lines += [
            {"event": "epoch", "trial": number, "epoch": epoch, "value": value, "seconds": 1.0, "attempt": 1}
            for epoch, value in enumerate(epochs, 1)
        ]
    paths.trials.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


# Who may use the page


@pytest.mark.parametrize("path", [*ADDRESSES, "/runs/train-20260102-030405-abcdef", "/?token=wrong", "/?token=%C3%A9"])
def test_without_the_token_every_address_answers_401(client, path):
    answer = client.ask("GET", path)

    assert answer.status == 401
    assert answer.text == "Open the address that `nightshift ui` printed: it contains the token of this page.\n"


@pytest.mark.parametrize("act", ["cancel", "retry"])
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
    assert answer.headers["set-cookie"] == f"nightshift_token={TOKEN}; HttpOnly; Path=/; SameSite=strict"
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


def test_another_site_whose_name_leads_here_is_refused(client):
    assert client.get("/", host="evil.example").status == 400


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


@pytest.mark.parametrize(("fields", "now"), [({}, False), ({"now": "1"}, True)])
def test_a_running_run_is_asked_to_stop(client, settings, fields, now):
    paths = queued(settings)
    with_state(paths, "running", attempt=1)

    client.post(f"/runs/{paths.run_id}/cancel", form_token=form_token(client, paths), **fields)

    assert StopRequest.read(paths.stop, 1) == StopRequest("cancel", 1, now=now)


def test_a_failed_run_is_queued_again(client, settings):
    paths = queued(settings)
    with_state(paths, "failed", "CUDA out of memory")

    answer = client.post(f"/runs/{paths.run_id}/retry", form_token=form_token(client, paths))

    assert answer.status == 303
    assert run_state.read_state(paths).state == "queued"


@pytest.mark.parametrize("forged", ["", "0" * 64, Access(token="another").form_token, "é"])
@pytest.mark.parametrize("act", ["cancel", "retry"])
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
    answer = client.post(f"/runs/{queued(settings).run_id}/cancel", form_token="0" * 5000)

    assert answer.status == 403
    assert "the form is longer than 4096 bytes" in answer.text


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
    assert page.pop("log") == ""
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


def test_a_damaged_run_is_in_the_list_and_its_page_says_the_cure(client, settings):
    damaged, good = queued(settings), queued(settings)
    damaged.state.write_text("{")

    answer = client.get(f"/runs/{damaged.run_id}")

    assert [run["state"] for run in client.json("/")["runs"]] == ["queued", "damaged"]
    assert client.get(f"/runs/{good.run_id}").status == 200
    assert answer.status == 500
    assert f"`nightshift delete --force {damaged.run_id}` deletes the run" in answer.text


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
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 would send the token over the network unencrypted; give --tls-cert and "
         "--tls-key, or --public-url with the https address of a proxy in front of the page"),
        (["--host", "gpu-1"], "--host gpu-1 would send the token over the network unencrypted; give --tls-cert"),
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
    assert f"the certificate {__file__} or its key cannot be used" in certificate_said[2]


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

    for path in ("/", "/models", "/queue", f"/runs/{search.run_id}", "/nothing"):
        browser.open(f"http://127.0.0.1:{client.port}{path}?token={TOKEN}")
        assert eventually(lambda: browser.evaluate(RENDERED) and browser.evaluate("!!document.querySelector('main')"))
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, path
    assert [text for text in browser.errors if "404" not in text] == []


def test_an_open_page_follows_its_run_and_keeps_the_focus(browser, client, settings):
    paths = queued(settings, name="night")
    browser.open(f"http://127.0.0.1:{client.port}/?token={TOKEN}")
    row = "document.querySelector('.runs .state')?.textContent"
    assert eventually(lambda: browser.evaluate(row) == "queued")
    assert eventually(lambda: browser.evaluate("document.getElementById('connection').textContent") == "Live")
    browser.evaluate("document.querySelector('.runs a').focus()")

    with_state(paths, "failed", "disk full")

    assert eventually(lambda: browser.evaluate(row) == "failed")
    assert browser.evaluate("document.querySelector('.doing').textContent").strip() == "disk full"
    assert browser.evaluate("document.activeElement.textContent") == "night"


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
