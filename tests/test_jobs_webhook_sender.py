"""Webhooks about the end of a run: signed, sent to allowed hosts only, retried until they arrive."""

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster.process_env import job_worker_environment
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.errors import InvalidOption, Refused
from jobs.queue import actions, schedules, webhook_sender
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests.stack import FAKE_WORKER, FakeSpec


class Listener(ThreadingHTTPServer):
    """Answers with the status codes in `answers` and keeps the requests."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.on_arrival: Callable[[], object] = lambda: None
        super().__init__(("127.0.0.1", 0), Ear)


class Ear(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((dict(self.headers), body))
        self.server.on_arrival()
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.send_header("Location", "http://169.254.169.254/")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def notifying(settings: Settings) -> Settings:
    return replace(settings, webhook_hosts=("127.0.0.1",), webhook_secret="s3cret")


def address(listener: Listener) -> str:
    return f"http://127.0.0.1:{listener.server_port}/hook"


def test_the_end_of_a_run_is_sent_once_and_signed(notifying: Settings, listener: Listener) -> None:
    run_id = submit(notifying, FakeSpec(), JobRequest(notify=address(listener)))
    actions.cancel(notifying, RunPaths.of(notifying.storage, run_id))

    arrived = [webhook_sender.deliver(notifying), webhook_sender.deliver(notifying)]

    [(headers, body)] = listener.heard
    sent = json.loads(body)
    assert arrived == [1, 0]
    assert (sent["id"], sent["state"], sent["why"]) == (run_id, "cancelled", "cancelled before it ran")
    assert headers["Nightshift-Signature"] == webhook_sender.signature("s3cret", headers["Nightshift-Timestamp"], body)
    assert "spec" not in sent


def test_a_message_that_did_not_arrive_is_sent_again_later(notifying: Settings, listener: Listener) -> None:
    listener.answers = [500]
    run_id = submit(notifying, FakeSpec(), JobRequest(notify=address(listener)))
    lose(notifying, run_id)

    first = webhook_sender.deliver(notifying)
    at_once = webhook_sender.deliver(notifying)
    make_due(notifying)
    later = webhook_sender.deliver(notifying)

    assert (first, at_once, later) == (0, 0, 1)
    assert [json.loads(body)["state"] for _, body in listener.heard] == ["lost", "lost"]


def test_a_message_that_is_being_sent_is_not_sent_by_another_process(notifying: Settings, listener: Listener) -> None:
    meanwhile: list[int] = []
    listener.on_arrival = lambda: meanwhile.append(webhook_sender.deliver(notifying))
    run_id = submit(notifying, FakeSpec(), JobRequest(notify=address(listener)))
    lose(notifying, run_id)

    arrived = webhook_sender.deliver(notifying)

    assert (arrived, meanwhile, len(listener.heard)) == (1, [0], 1)


def test_a_burst_worker_sends_the_webhook_of_its_last_run(
    notifying: Settings, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_WEBHOOK_HOSTS", "127.0.0.1")
    submit(notifying, FakeSpec(), JobRequest(notify=address(listener)))

    subprocess.run([*FAKE_WORKER, "--burst"], env=job_worker_environment(notifying), check=True, timeout=600)

    assert [json.loads(body)["state"] for _, body in listener.heard] == ["succeeded"]


def test_a_receiver_that_does_not_speak_http_does_not_block_other_messages(
    notifying: Settings, listener: Listener
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        threading.Thread(target=_greet, args=(stranger,), daemon=True).start()
        port = stranger.getsockname()[1]
        lose(notifying, submit(notifying, FakeSpec(), JobRequest(notify=f"http://127.0.0.1:{port}/")))
        lose(notifying, submit(notifying, FakeSpec(), JobRequest(notify=address(listener))))

        arrived = webhook_sender.deliver(notifying)

    assert arrived == 1
    [waiting] = (notifying.storage / "outbox").glob("*.json")
    assert json.loads(waiting.read_text())["tries"] == 1


def _greet(stranger: socket.socket) -> None:
    caller, _ = stranger.accept()
    with caller:
        caller.recv(4096)
        caller.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")


def test_no_redirect_is_followed(notifying: Settings, listener: Listener) -> None:
    listener.answers = [302]
    run_id = submit(notifying, FakeSpec(), JobRequest(notify=address(listener)))
    lose(notifying, run_id)

    assert webhook_sender.deliver(notifying) == 0
    assert len(listener.heard) == 1
    assert len(list((notifying.storage / "outbox").glob("*.json"))) == 1


def test_a_host_that_is_not_allowed_is_refused_before_anything_is_written(settings: Settings) -> None:
    allowed = replace(settings, webhook_hosts=("hooks.example",))

    with pytest.raises(Refused, match=r"may not send to 169\.254\.169\.254; .* allows hooks\.example"):
        submit(allowed, FakeSpec(), JobRequest(notify="http://169.254.169.254/latest"))
    with pytest.raises(Refused, match="is not an http:// or https:// URL"):
        submit(allowed, FakeSpec(), JobRequest(notify="file:///etc/passwd"))
    with pytest.raises(Refused, match="is not a valid URL"):
        submit(allowed, FakeSpec(), JobRequest(notify="http://[::1"))

    assert run_state.all_ids(settings.storage) == []


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("https://hooks.example:0/x", "cannot be sent to host 'hooks.example', port 0"),
        ("https://hooks.example:99999/s3cret", "is not a valid URL"),
        ("https://a:s3cret@hooks.example\u2100/", "has a character that no URL has"),
        ("https://hooks.example/s3cret path", "has a character that no URL has"),
        ("https://hooks.example/s3cret\n", "has a character that no URL has"),
        ("https://hooks..example/s3cret", "cannot be sent to host 'hooks..example'"),
        (f"https://{'h' * 64}.example/s3cret", "cannot be sent to host"),
        ("https:///s3cret", "is not an http:// or https:// URL"),
        ("s3cret", "is not an http:// or https:// URL"),
    ],
)
def test_an_address_that_can_never_be_delivered_is_refused_and_not_repeated(
    settings: Settings, url: str, fault: str
) -> None:
    with pytest.raises(InvalidOption) as caught:
        submit(replace(settings, webhook_hosts=("hooks.example",)), FakeSpec(), JobRequest(notify=url))

    assert fault in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert run_state.all_ids(settings.storage) == []


def test_credentials_of_an_address_are_sent_as_a_header_and_stored_for_the_owner_alone(
    notifying: Settings, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    url = address(listener).replace("//", "//night:s3cret%21@")
    listener.answers = [500, 200]
    run_id = submit(notifying, FakeSpec(), JobRequest(notify=url))
    schedules.add(notifying, "nightly", "0 20 * * *", FakeSpec(), JobRequest(notify=url))
    lose(notifying, run_id)

    webhook_sender.deliver(notifying)
    files = [path for path in notifying.storage.rglob("*") if path.is_file()]
    holders = {path.parent.name: path.stat().st_mode & 0o777 for path in files if b"s3cret" in path.read_bytes()}
    make_due(notifying)
    webhook_sender.deliver(notifying)

    assert [headers["Authorization"] for headers, _ in listener.heard] == ["Basic bmlnaHQ6czNjcmV0IQ=="] * 2
    assert holders == dict.fromkeys(("nightly", "outbox", run_id), 0o600)
    assert "s3cret" not in caplog.text
    assert schedules.schedules(notifying)[0].request.notify == url


def test_a_message_for_a_host_that_the_worker_does_not_allow_is_dropped(
    notifying: Settings, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = submit(notifying, FakeSpec(), JobRequest(notify=address(listener)))
    lose(notifying, run_id)

    webhook_sender.deliver(replace(notifying, webhook_hosts=()))

    assert listener.heard == []
    assert list((notifying.storage / "outbox").glob("*.json")) == []
    assert "is dropped: --notify may not send to 127.0.0.1" in caplog.text


def lose(settings: Settings, run_id: str) -> None:
    paths = RunPaths.of(settings.storage, run_id)
    with run_state.changing(paths) as state:
        run_state.write_state(paths, state.with_state("lost", "its node went away"))


def make_due(settings: Settings) -> None:
    for file in (settings.storage / "outbox").glob("*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "not_before": 0.0}))
