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
from tests.stack import eventually, free_port

CONF = (K8S / "components/dashboard/nginx.conf").read_text()
START = (K8S / "components/dashboard/start.sh").read_text()
RESOLV = "search team-a.svc.cluster.local svc.cluster.local cluster.local\nnameserver 127.0.0.1\noptions ndots:5\n"
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
    """The dashboard's password and Ray's token as k8s/secrets.sh generates them."""
    made = secrets_made()
    return {**made["dashboard"], **made["ray-token"]}


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
    (tmp_path / "resolv.conf").write_text(RESOLV)
    start = here(START, tmp_path, port, behind.server_address[1])
    # As in the pod, with a head that this machine has instead of the name that the cluster's DNS would resolve.
    head = f"sed -i 's/ray-head-svc.*:8265/127.0.0.1:{behind.server_address[1]}/' {tmp_path}/ray-head.conf"
    run = f"exec nginx -p {tmp_path} -e stderr -c {conf} -g 'daemon off; master_process off;'"
    (tmp_path / "start.sh").write_text(re.sub(r"^exec nginx.+$", f"{head}\n{run}", start, flags=re.MULTILINE))
    process = subprocess.Popen(["sh", tmp_path / "start.sh"])
    try:
        assert eventually(lambda: answers(port))
        yield port, heard
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=600)
        behind.shutdown()
        behind.server_close()


def here(text: str, folder: Path, port: int, behind: int) -> str:
    """The configuration with this machine's paths and addresses instead of the pod's."""
    text = text.replace("/tmp/", f"{folder}/").replace("listen 8080", f"listen 127.0.0.1:{port}")
    text = re.sub("/run/secrets/(dashboard|ray)|/etc(?=/resolv.conf)", str(folder), text)
    return text.replace("127.0.0.1:9181", f"127.0.0.1:{behind}")


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

    statuses = [ask(port, path, secret["password"]) for path in ("/rq/queues", "/ray/api/jobs/")]

    assert statuses == [200, 200]
    assert [path for path, _ in heard] == ["/rq/queues", "/api/jobs/"]
    assert [headers.get("authorization") for _, headers in heard] == [None, None]
    assert [headers.get("x-ray-authorization") for _, headers in heard] == [None, f"Bearer {secret['auth_token']}"]


@needs_nginx
def test_requests_without_the_password_and_requests_that_change_something_are_refused(windows, secret):
    port, heard = windows

    statuses = [ask(port, "/ray/"), ask(port, "/rq/", "guess"), ask(port, "/rq/", secret["password"], "POST")]

    assert statuses == [401, 401, 405]
    assert heard == []


@needs_nginx
def test_the_start_page_redirects_without_the_port_of_nginx(windows, secret):
    port, _ = windows
    basic = base64.b64encode(f"nightshift:{secret['password']}".encode()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    connection.request("GET", "/", headers={"Authorization": f"Basic {basic}", "Host": "gpu.example.com"})
    answer = connection.getresponse()
    connection.close()

    assert (answer.status, answer.headers["Location"]) == (302, "/rq/")


@pytest.mark.parametrize(
    ("resolv", "lines"),
    [
        (RESOLV, ["resolver 127.0.0.1 valid=10s;", "set $head ray-head-svc.team-a.svc.cluster.local:8265;"]),
        (  # OpenShift; a node's own search domain may come first
            "nameserver 172.30.0.10\nsearch example.org ns.svc.corp.internal svc.corp.internal\n",
            ["resolver 172.30.0.10 valid=10s;", "set $head ray-head-svc.ns.svc.corp.internal:8265;"],
        ),
        (
            "search ns.svc.cluster.local\nnameserver fd00:10:96::a\nnameserver 1.1.1.1\n",
            ["resolver [fd00:10:96::a] valid=10s;", "set $head ray-head-svc.ns.svc.cluster.local:8265;"],
        ),
    ],
)
def test_the_dns_server_and_the_name_of_the_head_are_those_of_the_cluster(tmp_path, resolv, lines):
    done = start_without_nginx(tmp_path, resolv)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ray-head.conf").read_text().splitlines() == lines
    assert (tmp_path / "ray-header.conf").stat().st_mode & 0o777 == 0o600


def test_a_pod_without_cluster_dns_says_what_is_missing(tmp_path):
    done = start_without_nginx(tmp_path, "nameserver 10.0.0.2\n")

    assert done.returncode == 1
    assert "no nameserver or no search domain NAMESPACE.svc.DOMAIN" in done.stderr


def start_without_nginx(folder: Path, resolv: str) -> "subprocess.CompletedProcess[str]":
    (folder / "resolv.conf").write_text(resolv)
    (folder / "auth_token").write_text("0123")
    script = re.sub(r"^exec nginx.+$", "", here(START, folder, 1, 2), flags=re.MULTILINE)
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


def test_no_manifest_names_the_dns_service_of_a_distribution():
    files = [file for file in K8S.rglob("*") if file.suffix in (".yaml", ".conf", ".sh")]

    assert [file.name for file in files if "kube-dns" in file.read_text()] == []
