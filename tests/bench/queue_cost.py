"""Measure the overhead of the queue: no-op runs/s and submit to start; the peer is a plain `rq worker`.

Both use one Redis. Nightshift does a whole run without the trainer: run folder, lease, fenced states, work-horse,
checks that nothing is left over. The launcher starts no process, as the peer's function starts none.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import rq
from redis import Redis
from rq.serializers import JSONSerializer

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import embedded_redis
from jobs.queue.job_worker import work
from jobs.queue.submit import submit
from jobs.runs.state import RunState, read_state
from tests.bench.measure import Row, in_turn, row
from tests.bench.peers.plain_rq import noop
from tests.stack import FakeSpec

RUNS = 100
LATENCIES = 20
COMMAND = "python -m tests.bench queue_cost"


class NoTrainer:
    """A launcher whose trainer has already succeeded."""

    place = "here"
    sends_own_heartbeat = False

    def start(self, paths: RunPaths, attempt: int) -> "NoTrainer":
        write_json(paths.result, {"kind": "train", "checkpoint": None, "metrics": {}, "seconds": 0.0})
        return self

    attach = start

    def wait(self, seconds: float) -> int | None:
        return 0

    def kill(self) -> None:
        return


def run() -> list[Row]:
    """Measure both and return the rows."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(storage=Path(folder)).with_storage_ready()
        server = embedded_redis.ensure_running(settings.storage)
        settings = Settings(storage=settings.storage, redis_url=server.url)
        with Redis.from_url(server.url) as connection:
            rates = in_turn(lambda: our_rate(settings), lambda: peer_rate(connection, server.url), pairs=3)
            starts = in_turn(lambda: our_latency(settings), lambda: peer_latency(connection, server.url), pairs=3)
        embedded_redis.stop(settings.storage)
    same = f"{RUNS} of {RUNS} succeeded on both sides"
    return [
        row(*rates, more_is_better=True, what="no-op runs", beside="plain rq worker", unit="runs/s", goal=0.5,
            parity=same, command=COMMAND),
        row(*starts, more_is_better=False, what="submit to start, worker idle", beside="plain rq worker", unit="ms",
            goal=0.5, parity=f"{LATENCIES} starts on both sides", command=COMMAND),
    ]  # fmt: skip


def our_rate(settings: Settings) -> float:
    runs = [submit(settings, FakeSpec()) for _ in range(RUNS)]
    with our_worker(settings, "--burst") as worker:
        worker.wait()
    states = [read_state(RunPaths.of(settings.storage, run_id)) for run_id in runs]
    assert {state.state for state in states} == {"succeeded"}
    first = min(moment(state.started) for state in states)
    return (RUNS - 1) / (max(moment(state.ended) for state in states) - first)


def peer_rate(connection: Redis, url: str) -> float:
    queue = plain_queue(connection)
    jobs = [queue.enqueue(noop, job_timeout=60, result_ttl=600) for _ in range(RUNS)]
    with peer_worker(url, "--burst") as worker:
        worker.wait()
    done = [rq.job.Job.fetch(job.id, connection, JSONSerializer) for job in jobs]
    assert all(job.is_finished for job in done)
    first = min(job.started_at.timestamp() for job in done)
    return (RUNS - 1) / (max(job.ended_at.timestamp() for job in done) - first)


def our_latency(settings: Settings) -> float:
    with our_worker(settings) as worker:
        wait_for(lambda: ended(settings, submit(settings, FakeSpec())))
        taken = []
        for _ in range(LATENCIES):
            time.sleep(0.02)
            began = time.time()
            run_id = submit(settings, FakeSpec())
            wait_for(lambda run_id=run_id: state_of(settings, run_id).has_ended)
            taken.append((moment(state_of(settings, run_id).started) - began) * 1000)
        worker.terminate()
        worker.wait()
    return statistics.median(taken)


def peer_latency(connection: Redis, url: str) -> float:
    queue = plain_queue(connection)
    with peer_worker(url) as worker:
        wait_for(lambda: queue.enqueue(noop, result_ttl=600).latest_result(timeout=20) is not None)
        taken = []
        for _ in range(LATENCIES):
            time.sleep(0.02)
            began = time.time()
            job = queue.enqueue(noop, job_timeout=60, result_ttl=600)
            assert job.latest_result(timeout=20) is not None
            job.refresh()
            taken.append((job.started_at.timestamp() - began) * 1000)
        worker.terminate()
        worker.wait()
    return statistics.median(taken)


def our_worker(settings: Settings, *options: str) -> "subprocess.Popen[bytes]":
    order = [sys.executable, "-m", "tests.bench.queue_cost", str(settings.storage), str(settings.redis_url), *options]
    return subprocess.Popen(order, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def peer_worker(url: str, *options: str) -> "subprocess.Popen[bytes]":
    rq_program = str(Path(sys.executable).parent / "rq")
    order = [rq_program, "worker", "--url", url, "--serializer", "json", "--quiet", *options, "plain"]
    return subprocess.Popen(order, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def plain_queue(connection: Redis) -> rq.Queue:
    return rq.Queue("plain", connection=connection, serializer=JSONSerializer)


def state_of(settings: Settings, run_id: str) -> RunState:
    return read_state(RunPaths.of(settings.storage, run_id))


def ended(settings: Settings, run_id: str) -> bool:
    wait_for(lambda: state_of(settings, run_id).has_ended)
    return True


def wait_for(holds: object) -> None:
    until = time.monotonic() + 30
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.001)


def moment(text: str | None) -> float:
    assert text is not None
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    storage, address = sys.argv[1:3]
    work(Settings(storage=Path(storage), redis_url=address), launcher=NoTrainer(), burst="--burst" in sys.argv)
