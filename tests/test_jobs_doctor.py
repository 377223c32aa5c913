"""What `nightshift doctor` says of a Redis that answers but takes nothing, and of an address that is not Ray's."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import StreamRequestHandler, TCPServer
from threading import Thread

import pytest
from redis import Redis

from cluster.errors import UnknownRun
from cluster.settings import Settings
from jobs.cli.doctor import ray_finding, redis_findings
from jobs.runs.state import find


def test_a_full_redis_is_a_fault(settings: Settings, redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("maxmemory", "1")

    (full,), _ = redis_findings(settings)
    redis.config_set("maxmemory", "0")
    (emptied, _), _ = redis_findings(settings)

    assert (full.ok, full.cure) == (False, "raise its maxmemory")
    assert full.found.endswith(" is full, so no run can be queued")
    assert emptied.ok


def test_a_replica_of_redis_is_a_fault(settings: Settings, redis: Redis) -> None:
    redis.replicaof("127.0.0.1", "1")

    (replica,), _ = redis_findings(settings)
    redis.replicaof("no", "one")

    assert (replica.ok, replica.cure) == (False, "name the primary in NIGHTSHIFT_REDIS_URL")
    assert replica.found.endswith(" is a read-only replica")


class OtherService(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>" if self.path == "/api/version" else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other_service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), OtherService)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_http() -> Iterator[str]:
    """A service that speaks another protocol, as a Redis or the port of Ray's GCS does."""

    class Answer(StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"-ERR unknown command\r\n")

    with TCPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_address_of_another_service_is_told_from_one_that_does_not_exist_or_does_not_answer(
    settings: Settings, other_service: str, no_http: str
) -> None:
    addresses = (other_service, no_http, "http://no-such-host.invalid:8265", "http://127.0.0.1:1")

    found = [ray_finding(Settings(storage=settings.storage, ray_jobs_url=url)) for url in addresses]

    assert [finding.found for finding in found] == [
        f"{other_service} answers, but not as Ray's Jobs API",
        f"{no_http} answers, but not as Ray's Jobs API",
        "http://no-such-host.invalid:8265 has a host name that cannot be resolved",
        "http://127.0.0.1:1 does not answer (Connection refused)",
    ]


def test_an_unknown_id_may_be_a_rayjob_that_has_not_started(settings: Settings) -> None:
    with pytest.raises(UnknownRun, match="a RayJob is shown once it has started: `kubectl describe rayjob train-2026"):
        find(settings.storage, "train-20260101-000000-aaaaaa")
