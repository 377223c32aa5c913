"""The use of GPUs over time, from nvidia-smi to the queue page; a script takes the place of nvidia-smi."""

import json
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from cluster.gpu_use import GpuUse, gpu_use
from cluster.settings import Settings
from jobs.queue.gpu_history import KEPT_SAMPLES, MACHINES, PREFIX, gpu_histories, gpu_sampler, record
from tests import web_page as page
from tests.stack import eventually
from tests.web_page import Client

serving, client = page.serving, page.client
GIB = 2**30
TWO = "0, NVIDIA H100 80GB HBM3, 37, 20480, 81920\\n1, NVIDIA H100 80GB HBM3, 0, 0, 81920"
ODD = "0, NVIDIA A100, [N/A], 1024, 40960\\n1, NVIDIA A100, [Unknown Error], [Unknown Error], [Unknown Error]"
SOUND = {"index": 0, "name": "", "utilization": 0, "used_bytes": 0, "memory_bytes": 1}
HUGE = json.dumps({"at": 9e9, "gpus": [{**SOUND, "index": 10**399}]})
HUGE_TIME = json.dumps({"at": 10**399, "gpus": [SOUND]})


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a program that prints these lines first on the PATH, as nvidia-smi."""

    def install(lines: str, code: int = 0) -> None:
        program = tmp_path / "bin/nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\nprintf '%b\\n' '{lines}'\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    install(TWO)
    return install


@pytest.mark.usefixtures("nvidia_smi")
def test_the_use_of_each_gpu_is_measured() -> None:
    first, second = gpu_use()

    assert first == GpuUse(
        index=0, name="NVIDIA H100 80GB HBM3", utilization=0.37, used_bytes=20 * GIB, memory_bytes=80 * GIB
    )
    assert (second.index, second.utilization) == (1, 0.0)


def test_a_gpu_without_utilization_is_kept_and_one_that_failed_is_left_out(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(ODD)

    assert [(one.index, one.utilization, one.used_bytes) for one in gpu_use()] == [(0, None, GIB)]


def test_nothing_is_measured_where_the_driver_fails(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi("No devices were found", 6)

    assert gpu_use() == ()


@pytest.mark.usefixtures("nvidia_smi")
def test_an_hour_of_measurements_is_kept_and_what_is_malformed_is_skipped(redis: Redis) -> None:
    now = time.time()
    redis.lpush(PREFIX + "gpu-1", *(b"old" for _ in range(KEPT_SAMPLES)))
    record(redis, "gpu-1", now - 3700)
    record(redis, "gpu-1", now - 70)
    record(redis, "gpu-1", now - 5)
    malformed = ("[]", '{"at": 1, "gpus": [{}]}', '{"at": "x", "gpus": []}', b"\xff", "[" * 100_000, HUGE, HUGE_TIME)
    redis.lpush(PREFIX + "gpu-1", *malformed)

    histories = gpu_histories(redis, now)

    assert redis.llen(PREFIX + "gpu-1") == KEPT_SAMPLES + len(malformed)
    assert [(one.machine, one.index) for one in histories] == [("gpu-1", 0), ("gpu-1", 1)]
    assert [(round(age), gpu.utilization) for age, gpu in histories[0].points] == [(70, 0.37), (5, 0.37)]
    assert 0 < redis.ttl(PREFIX + "gpu-1") <= 3600
    assert 0 < redis.ttl(MACHINES) <= 3600


@pytest.mark.usefixtures("nvidia_smi")
def test_a_machine_that_is_gone_for_an_hour_is_forgotten_while_another_one_measures(redis: Redis) -> None:
    now = time.time()
    record(redis, "gone", now - 3601)
    record(redis, "still-here", now - 3000)

    record(redis, "new", now)

    assert redis.zrange(MACHINES, 0, -1) == [b"still-here", b"new"]
    assert {one.machine for one in gpu_histories(redis, now)} == {"still-here", "new"}


@pytest.mark.usefixtures("nvidia_smi")
def test_a_job_worker_measures_the_gpus_of_its_machine_until_it_ends(settings: Settings, redis: Redis) -> None:
    with gpu_sampler(settings, "worker"):
        assert eventually(lambda: len(gpu_histories(redis)) == 2)

    assert redis.keys("nightshift:role:*") == []


def test_nothing_is_shown_of_gpus_where_there_is_none(
    client: Client,
    settings: Settings,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with gpu_sampler(settings, "worker"):
        pass

    assert redis.keys("nightshift:*gpu*") == []
    assert "<h2>GPUs</h2>" not in client.get("/queue").text
    assert client.json("/queue")["gpus"] == []


@pytest.mark.usefixtures("nvidia_smi")
def test_the_queue_page_shows_use_and_memory_of_each_gpu(
    client: Client,
    redis: Redis,
) -> None:
    record(redis, "gpu-1<b>", time.time() - 65)
    record(redis, "gpu-1<b>")

    shown = client.get("/queue").text
    (first, _) = client.json("/queue")["gpus"]

    assert "<h2>GPUs</h2>" in shown
    assert "<h3>gpu-1&lt;b&gt;: GPU 0</h3>" in shown
    assert "NVIDIA H100 80GB HBM3, 37% busy, 20.0 of 80.0 GiB" in shown
    assert shown.count('<svg class="chart"') == 2
    assert (first["machine"], first["index"], first["memory_bytes"]) == ("gpu-1<b>", 0, 80 * GIB)
    assert [sample["utilization"] for sample in first["samples"]] == [0.37, 0.37]
