"""Hostile entries in Redis: they are refused and logged, nothing in them runs, and the queue is served."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

from redis import Redis

from cluster.settings import Settings
from jobs.queue.entries import RUN_JOB, RunEntry
from jobs.queue.queues import PREFIX, REFUSED, enqueue, queue, refused, waiting
from jobs.queue.stack import Stack
from jobs.queue.submit import submit
from tests.stack import FakeSpec, reaches

KEY = f"rq:queue:{PREFIX}normal"
RUN_ID = "train-20261123-020000-abc123"


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def plant(redis: Redis, entry_id: str, data: bytes, **fields: str | bytes) -> None:
    """Write an entry by hand, as somebody with Redis' password could."""
    common = {"origin": f"{PREFIX}normal", "status": "queued", "created_at": "2026-11-23T02:00:00.000000Z"}
    redis.hset(f"rq:job:{entry_id}", mapping={**common, "data": zlib.compress(data), **fields})
    redis.rpush(KEY, entry_id)


def call(function: str, *args: Any, instance: Any = None, **keywords: Any) -> bytes:
    return json.dumps([function, instance, args, keywords]).encode()


def test_hostile_entries_run_nothing_and_the_queue_is_served(
    stack: Stack, settings: Settings, redis: Redis, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    touch = f"touch {trap}"
    plant(redis, "os-system", call("os.system", touch))
    plant(redis, "pickle", pickle.dumps(Bomb(trap)))
    plant(redis, "instance", call(RUN_JOB, "instance", instance="os"))
    plant(redis, "callback", call(RUN_JOB, "callback"), success_callback_name="os.system")
    plant(redis, RUN_ID, call(RUN_JOB, RUN_ID), failure_callback_name="os.system")
    plant(
        redis,
        "webhook",
        call(RUN_JOB, "webhook"),
        webhooks=json.dumps([{"url": "http://127.0.0.1:1/", "job_status": "failed"}]),
    )
    plant(redis, "path", call(RUN_JOB, "../../../etc/passwd"))
    plant(redis, "../../../etc/passwd", call(RUN_JOB, "../../../etc/passwd"))
    plant(redis, "no-json", base64.b64encode(b"nonsense"))
    plant(redis, "bad-fields", call(RUN_JOB, "bad-fields"), timeout="soon", result_ttl="never", status="dancing")
    redis.rpush(KEY, b"\xff\xfe not text", "no-such-hash")

    run_id = submit(settings, FakeSpec())
    reaches(settings.storage, run_id, "succeeded")

    assert not trap.exists()
    assert len(refused(redis)) == 12
    assert redis.llen(f"{KEY}:intermediate") == 0
    log = (settings.storage / "logs" / "worker-1.log").read_text()
    assert "refused an entry of nightshift-normal: entry 'os-system' is refused: it names 'os.system'" in log
    assert "Traceback" not in log


def test_malformed_registries_do_not_end_the_worker(stack: Stack, settings: Settings, redis: Redis) -> None:
    plant(redis, "abandoned", call("os.system", "false"), status="started", failure_callback_name="os.system")
    redis.lrem(KEY, 0, "abandoned")
    for registry in ("wip", "failed", "finished", "deferred"):
        redis.zadd(f"rq:{registry}:{PREFIX}normal", {"abandoned:x:y": 1, "abandoned": 1, "nothing": 1})

    run_id = submit(settings, FakeSpec())

    reaches(settings.storage, run_id, "succeeded")
    assert stack.workers[0].poll() is None


def test_a_plain_rq_worker_on_our_queue_cannot_be_made_by_our_entries_to_run_more(
    settings: Settings, redis: Redis
) -> None:
    enqueue(redis, RUN_ID, "normal")

    raw = redis.hgetall(f"rq:job:{RUN_ID}")

    assert json.loads(zlib.decompress(raw[b"data"])) == [RUN_JOB, None, [RUN_ID], {}]
    assert not any(raw.get(name) for name in (b"success_callback_name", b"failure_callback_name", b"webhooks"))


def test_a_run_is_in_its_queue_once_however_often_it_is_pushed(redis: Redis) -> None:
    other = "train-20261123-020000-abc124"
    for _ in range(3):
        enqueue(redis, RUN_ID, "normal")
    enqueue(redis, other, "normal", at_front=True)

    assert waiting(redis, "normal") == [other, RUN_ID]


def test_an_entry_is_read_back_as_ours_with_explicit_timeout_and_retention(redis: Redis) -> None:
    enqueue(redis, RUN_ID, "high")

    entry = queue(redis, "high").next_entry()

    assert isinstance(entry, RunEntry)
    assert (entry.id, entry.timeout, entry.result_ttl, entry.failure_ttl) == (RUN_ID, -1, 0, 0)
    assert redis.lrange(REFUSED, 0, -1) == []


def test_a_run_that_was_put_into_its_queue_again_while_it_started_is_not_called_foreign(redis: Redis) -> None:
    enqueue(redis, RUN_ID, "high")
    redis.delete(f"rq:job:{RUN_ID}")

    entry = queue(redis, "high").next_entry()

    assert (entry, refused(redis), redis.llen(f"{PREFIX}high:intermediate")) == (None, [], 0)
    assert waiting(redis, "high") == []
