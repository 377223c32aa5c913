"""A Redis that other applications use too: only Nightshift's own job workers are listed and drained."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
import rq
from redis import Redis
from rq.serializers import JSONSerializer
from rq.utils import utcformat

from jobs.queue.entries import RunEntry
from jobs.queue.queues import RunQueue, queue
from jobs.queue.reconciler import ReconcilerMemory, reconcile
from jobs.queue.worker_list import drain, find_workers, live_workers, serving_workers
from tests.conftest import Say

OURS = "ours-1"


def register(redis: Redis, name: str, *queues: str) -> None:
    """Register a worker in Redis as RQ does, without starting it."""
    worker = rq.Worker(
        [rq.Queue(queue_name, connection=redis) for queue_name in queues], name=name, connection=redis,
        job_class=RunEntry, serializer=JSONSerializer,
    )  # fmt: skip
    worker.register_birth()


def test_workers_of_other_applications_are_neither_listed_nor_drained(redis: Redis, say: Say) -> None:
    register(redis, OURS, "nightshift-high", "nightshift-normal")
    register(redis, "emails-1", "emails")
    register(redis, "greedy-1", "emails", "nightshift-low")
    listener = redis.pubsub()
    listener.subscribe("rq:pubsub:emails-1", "rq:pubsub:greedy-1", f"rq:pubsub:{OURS}")
    for _ in range(3):
        listener.get_message(timeout=60)

    listed = [(worker.name, worker.queues) for worker in live_workers(redis)]
    drained = drain(redis, None)
    by_hand = say("worker", "list")

    assert listed == [(OURS, ("high", "normal"))]
    assert drained == [OURS]
    message = listener.get_message(timeout=60)
    assert message is not None
    assert message["channel"] == f"rq:pubsub:{OURS}".encode()
    assert listener.get_message(timeout=0.2) is None
    assert by_hand[2] == "skipped 1 entries of RQ's set of workers that are not Nightshift's\n"
    assert "emails" not in by_hand[1]


@pytest.mark.parametrize("member", [b"odd", b"\xff\xfe", b"rq:worker:text", b"rq:worker:bare"])
def test_a_malformed_entry_of_the_set_of_workers_is_skipped_and_counted(redis: Redis, say: Say, member: bytes) -> None:
    register(redis, OURS, "nightshift-normal")
    redis.set("rq:worker:text", "not a hash")
    redis.hset("rq:worker:bare", mapping={"birth": "yesterday", "queues": b"\xff"})
    redis.sadd("rq:workers", member)
    redis.sadd("rq:workers:nightshift-normal", member)

    found, skipped = find_workers(redis)

    assert ([worker.name for worker in found], skipped) == ([OURS], 1)
    assert say("queue", "show")[0] == 0


def test_a_foreign_value_in_place_of_the_set_of_workers_does_not_stop_the_reconciler(settings, redis: Redis) -> None:
    redis.set("rq:workers:nightshift-high", "not a set")
    redis.set("rq:workers", "not a set")

    assert reconcile(settings, redis, ReconcilerMemory()) == []
    assert find_workers(redis) == ([], 0)


def test_our_queues_are_rq_queues_of_our_prefix(redis: Redis) -> None:
    assert isinstance(queue(redis, "normal"), RunQueue)
    assert queue(redis, "normal").name == "nightshift-normal"


def test_a_job_worker_whose_heartbeats_stopped_is_silent_and_serves_nothing(redis: Redis, say: Say) -> None:
    register(redis, OURS, "nightshift-normal")
    register(redis, "dead-1", "nightshift-normal")
    redis.hset(f"rq:worker:{OURS}", "state", "idle")
    redis.hset("rq:worker:dead-1", "state", "busy")
    redis.expire("rq:worker:dead-1", 35)  # 70 s after a heartbeat it is gone

    states = {worker.name: worker.state for worker in live_workers(redis)}
    queue_shown = json.loads(say("queue", "show", "--json")[1])["queues"]

    assert states == {OURS: "idle", "dead-1": "silent"}
    assert [line["workers"] for line in queue_shown] == [0, 1, 0]
    assert [worker.name for worker in serving_workers(redis)] == [OURS]


def test_the_list_shows_ages_like_the_list_of_runs(redis: Redis, say: Say) -> None:
    register(redis, OURS, "nightshift-normal")
    started, heartbeat = (datetime.now(UTC) - timedelta(hours=2, minutes=3, seconds=9), "2026-01-01T00:00:00.000000Z")
    redis.hset(f"rq:worker:{OURS}", mapping={"birth": utcformat(started), "last_heartbeat": heartbeat})

    heading, row = say("worker", "list")[1].splitlines()
    record = json.loads(say("worker", "list", "--json")[1])[0]

    assert re.split("  +", heading) == ["NAME", "STATE", "RUN", "QUEUES", "STARTED", "LAST HEARTBEAT"]
    assert row.split()[0] == OURS
    assert "  2h03m ago  " in row
    assert re.search(r"\d+d\d\dh ago$", row)
    assert record["beat"] == "2026-01-01T00:00:00Z"


def test_without_job_workers_the_list_says_how_to_start_one(redis: Redis, say: Say) -> None:
    assert say("worker", "list") == (
        0, "", "no job worker is running; `nightshift up` or `nightshift worker` starts one\n"
    )  # fmt: skip
