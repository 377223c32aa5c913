"""What `nightshift doctor` says of a Redis that answers but takes nothing, and of an address that is not Ray's."""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer
from threading import Thread
from types import SimpleNamespace

import pytest
from redis import Redis, ResponseError

from cluster.errors import UnknownRun
from cluster.settings import Settings
from cluster.version import VERSION
from data_shards.errors import DamagedShard
from data_shards.index import Shard, read_index
from data_shards.read.shard_files import ShardFiles
from jobs.cli import doctor
from jobs.cli.doctor import ray_finding, redis_findings, shards_finding
from jobs.runs.state import find
from tests.conftest import Say


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


@pytest.mark.parametrize(("off", "found"), [(3600, "1h00m ahead of"), (-120, "2m00s behind")])
def test_a_clock_that_differs_from_that_of_redis_is_a_fault(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, off: int, found: str
) -> None:
    right, _ = redis_findings(settings)
    seconds = int(time.time())
    monkeypatch.setattr(Redis, "time", lambda _: (seconds - off, 0))
    monkeypatch.setattr("jobs.cli.doctor.time", SimpleNamespace(time=lambda: float(seconds)))

    wrong = redis_findings(settings)[0][1]

    assert [check.check for check in right] == ["Redis", "queues"]
    assert (wrong.check, wrong.ok, wrong.found) == ("clock", False, f"this machine's is {found} that of Redis")
    assert wrong.cure == "correct the one that is wrong (NTP): windows, schedules and certificates depend on it"


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


def test_shards_that_were_cut_off_or_lost_are_faults_with_the_command_that_lists_all(
    digits_shards: Path, tmp_path: Path
) -> None:
    shards = shutil.copytree(digits_shards, tmp_path / "my digits")
    whole = shards_finding(str(shards))
    second, first = read_index(str(shards)).of_split("train")[1::-1]

    os.truncate(shards / second.name, 20_000)
    cut = shards_finding(str(shards))
    (shards / first.name).unlink()
    lost = shards_finding(str(shards))
    with pytest.raises(DamagedShard) as error:
        ShardFiles(str(shards), read_index(str(shards))).table_of(second)

    listed = f"`nightshift shards verify '{shards}'` lists all damaged shards"
    assert whole.ok
    assert (cut.ok, cut.found) == (False, f"{shards}: {second.name} has 20000 bytes, the index says {second.bytes}")
    assert cut.cure == f"copy it again or pack the data set again; {listed}"
    assert (lost.ok, lost.found, lost.cure) == (False, f"{shards}: {first.name} is missing", cut.cure)
    assert re.fullmatch(
        re.escape(f"{second.name} has 20000 bytes, the index says {second.bytes} (")
        + f"{second.name}: [^;]*"
        + re.escape(f"); copy it again or pack the data set again ({listed})"),
        str(error.value),
    )


def test_a_shard_that_cannot_be_looked_at_is_a_finding_and_not_the_end_of_doctor(
    digits_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path, _: Shard) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr("jobs.cli.doctor.find_size_fault", stale)

    finding = shards_finding(str(digits_shards))

    first = digits_shards / read_index(str(digits_shards)).shards[0].name
    assert (finding.ok, finding.found) == (False, f"{first} cannot be read (Stale file handle)")
    assert finding.cure == "check the path, its permissions and its disk"


def test_an_unknown_id_may_be_a_rayjob_that_has_not_started(settings: Settings) -> None:
    with pytest.raises(UnknownRun, match="a RayJob is shown once it has started: `kubectl describe rayjob train-2026"):
        find(settings.storage, "train-20260101-000000-aaaaaa")


def test_what_doctor_says_wraps_between_words(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")

    lines = say("doctor")[1].splitlines()

    at = next(at for at, line in enumerate(lines) if "weights: " in line)
    assert lines[at:] == [
        "ok     weights: --weights imagenet will download",
        "       efficientnet-b0-355c32eb.pth once",
    ]


def test_doctor_says_that_no_job_worker_is_running_and_no_run_waits(say: Say) -> None:
    lines = say("doctor")[1].splitlines()

    assert "ok     queues: no run waits" in lines
    assert f"ok     versions: {VERSION} here" in lines


def test_doctor_names_a_fault_and_its_cure(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = say("doctor", "--json")
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", "redis://127.0.0.1:1/0")
    code, out, _ = say("doctor", "--json")
    fault = next(finding for finding in json.loads(out) if not finding["ok"])

    assert healthy[0] == 0
    assert code == 1
    assert (fault["check"], fault["cure"]) == ("Redis", "start it or correct NIGHTSHIFT_REDIS_URL")


@pytest.mark.parametrize("name", ["connect", "serving_workers"])
def test_doctor_has_a_cure_for_an_answer_of_redis_that_names_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object) -> None:
        raise ResponseError("LOADING Redis is loading the dataset in memory")

    monkeypatch.setattr(doctor, name, fail)

    (finding,), workers = doctor.redis_findings(settings)

    assert (finding.ok, workers) == (False, [])
    assert finding.found == "LOADING Redis is loading the dataset in memory"
    assert finding.cure == "start it or correct NIGHTSHIFT_REDIS_URL"
