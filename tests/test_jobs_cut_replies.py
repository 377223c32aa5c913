"""Replies of Redis that are lost on their way: the command was carried out, and its sender does not know it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from redis import Redis

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.queues import waiting
from jobs.queue.stack import start_stack
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from tests.cutting_proxy import CuttingProxy
from tests.stack import FAKE_WORKER, FakeSpec, eventually, lines_of, state_of


@pytest.fixture
def proxy(settings: Settings) -> Iterator[CuttingProxy]:
    found = CuttingProxy(str(settings.storage / "redis" / "socket"), every=0)
    yield found
    found.close()


def through(proxy: CuttingProxy, settings: Settings) -> Settings:
    password = str(settings.redis_url).split(":")[2].split("@")[0]
    return replace(settings, redis_url=f"redis://:{password}@127.0.0.1:{proxy.port}/0")


def test_a_reply_that_is_lost_at_submit_queues_the_run_once(
    settings: Settings, proxy: CuttingProxy, redis: Redis
) -> None:
    behind = through(proxy, settings)
    proxy.every = 9  # a connection takes four replies before its first command

    runs = [submit(behind, FakeSpec()) for _ in range(10)]

    assert proxy.cuts >= 3
    assert waiting(redis, "normal") == runs


@pytest.mark.slow
def test_workers_behind_a_proxy_that_cuts_replies_run_every_run_once(settings: Settings, proxy: CuttingProxy) -> None:
    proxy.every = 40

    with start_stack(through(proxy, settings), 2, worker_command=FAKE_WORKER):
        runs = [submit(settings, FakeSpec()) for _ in range(40)]
        assert eventually(lambda: not run_state.pending_ids(settings.storage))

    assert proxy.cuts >= 5
    for run_id in runs:
        assert len(lines_of(RunPaths.of(settings.storage, run_id).folder / "published.jsonl")) == 1
    assert {state_of(settings.storage, run_id).state for run_id in runs} == {"succeeded"}
