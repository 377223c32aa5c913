"""Which requests a real nginx forwards to the two dashboards."""

import base64
import http.client
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.k8s_manifests import K8S
from tests.k8s_namespaces import secrets_made
from tests.stack import eventually
from tests.test_jobs_watch import free_port

CONF = (K8S / "components/dashboard/nginx.conf").read_text()
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx") is None or shutil.which("openssl") is None, reason="nginx or openssl is not installed"
)


class Behind(BaseHTTPRequestHandler):
    """A server behind nginx: records the path and the headers of each request."""

    heard: list[tuple[str, dict[str, str]]]

    def do_GET(self) -> None:
        self.heard.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def secret() -> dict[str, str]:
    """The dashboard's Secret as k8s/secrets.sh generates it."""
    return secrets_made()["dashboard"]


@pytest.fixture
def windows(tmp_path: Path, secret: dict[str, str]) -> Iterator[tuple[int, list[tuple[str, dict[str, str]]]]]:
    """The port of nginx, and the requests that it forwarded."""
    heard: list[tuple[str, dict[str, str]]] = []
    behind = ThreadingHTTPServer(("127.0.0.1", 0), type("Heard", (Behind,), {"heard": heard}))
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    for name, text in secret.items():
        (tmp_path / name).write_text(text)
    port = free_port()
    conf = tmp_path / "nginx.conf"
    conf.write_text(here(CONF, tmp_path, port, behind.server_address[1]))
    process = subprocess.Popen(
        ["nginx", "-p", tmp_path, "-e", "stderr", "-c", conf, "-g", "daemon off; master_process off;"]
    )
    try:
        assert eventually(lambda: answers(port), seconds=15)
        yield port, heard
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=15)
        behind.shutdown()
        behind.server_close()


def here(text: str, folder: Path, port: int, behind: int) -> str:
    """The configuration with this machine's paths and addresses instead of the pod's."""
    text = text.replace("/tmp/", f"{folder}/").replace("/run/secrets/dashboard", str(folder))
    text = re.sub(r"resolver \S+", "resolver 127.0.0.1", text).replace("listen 8080", f"listen 127.0.0.1:{port}")
    return re.sub(r"127\.0\.0\.1:9181|ray-head-svc\.[\w.]+:8265", f"127.0.0.1:{behind}", text)


def answers(port: int) -> bool:
    try:
        return ask(port, "/healthz") == 204
    except OSError:
        return False


def ask(port: int, path: str, password: str = "", method: str = "GET") -> int:
    """Send a request as a browser does and return the status."""
    basic = base64.b64encode(f"nightshift:{password}".encode()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Authorization": f"Basic {basic}"} if password else {})
    status = connection.getresponse().status
    connection.close()
    return status


@needs_nginx
def test_the_password_is_not_forwarded_and_ray_gets_only_its_token(windows, secret):
    port, heard = windows
    token = re.search(r"Bearer \w+", secret["ray-header.conf"])

    statuses = [ask(port, path, secret["password"]) for path in ("/rq/queues", "/ray/api/jobs/")]

    assert statuses == [200, 200]
    assert [path for path, _ in heard] == ["/rq/queues", "/api/jobs/"]
    assert [headers.get("authorization") for _, headers in heard] == [None, None]
    assert token
    assert [headers.get("x-ray-authorization") for _, headers in heard] == [None, token[0]]


@needs_nginx
def test_requests_without_the_password_and_requests_that_change_something_are_refused(windows, secret):
    port, heard = windows

    statuses = [ask(port, "/ray/"), ask(port, "/rq/", "guess"), ask(port, "/rq/", secret["password"], "POST")]

    assert statuses == [401, 401, 405]
    assert heard == []
