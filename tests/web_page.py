"""The page, served by a real server over loopback, with its client, and a browser that looks at it."""

import asyncio
import http.client
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlencode

import pytest
import uvicorn

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from jobs.web.access import Access
from jobs.web.app import Page, create_app
from tests.browser import CHROMIUM, Browser, open_browser
from tests.stack import FakeSpec
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with open_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found
