"""Leases on GPUs between real processes; no GPU is needed."""

import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from cluster.errors import InsufficientResources, StorageError
from cluster.gpu_lease import GpuRequest, wait_for_gpus

GPUS = ("GPU-a", "GPU-b", "GPU-c")
HOLDER = """
import os, sys, time
from pathlib import Path
from cluster.gpu_lease import GpuRequest, wait_for_gpus
lease = wait_for_gpus(
    Path(sys.argv[1]), GpuRequest(uuids=sys.argv[2].split(","), need=int(sys.argv[3]), most=int(sys.argv[3])),
    lambda text: print(text, flush=True), limit_seconds=60, pause=lambda _: time.sleep(0.01),
)
started, starts = os.pipe()
if os.fork() == 0:  # as a loader process, which may outlive its trainer
    os.write(starts, b"1")
    time.sleep(60)
os.read(started, 1)  # a child that has not run yet still has the copied locks
print(*lease.uuids, flush=True)
sys.stdin.read()
"""


class StillWaiting(Exception):
    """Ends a wait."""


def give_up(text):
    raise StillWaiting(text)


def lease(folder, uuids=GPUS, *, need=1, most=None, on_wait=give_up):
    request = GpuRequest(uuids=uuids, need=need, most=most or need)
    return wait_for_gpus(folder, request, on_wait, limit_seconds=60, pause=lambda _: None)


@pytest.fixture
def holder(tmp_path):
    """Start a process that leases GPUs and keeps them."""
    started = []

    def start(need, uuids=GPUS):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), ",".join(uuids), str(need)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_two_leases_never_have_the_same_gpu_and_a_third_waits(tmp_path, holder):
    _, first = holder(2)
    mine = lease(tmp_path)

    with pytest.raises(StillWaiting, match=r"^waiting for 1 GPU \(0 free\)$"):
        lease(tmp_path)

    assert (first, mine.uuids) == ("GPU-a GPU-b", ("GPU-c",))
    mine.release()


def test_the_gpus_of_a_killed_holder_are_free_though_its_child_lives(tmp_path, holder):
    process, _ = holder(3)
    with pytest.raises(StillWaiting, match=r"waiting for 2 GPUs \(0 free\)"):
        lease(tmp_path, need=2)

    process.kill()
    process.wait()

    mine = lease(tmp_path, need=2)
    assert mine.uuids == ("GPU-a", "GPU-b")
    mine.release()


def test_a_lease_takes_what_is_free_between_the_least_and_the_most(tmp_path, holder):
    holder(1)

    mine = lease(tmp_path, need=1, most=3)

    assert mine.uuids == ("GPU-b", "GPU-c")
    mine.release(["GPU-b"])
    assert lease(tmp_path, need=1).uuids == ("GPU-b",)


def test_a_wait_takes_nothing_so_a_smaller_lease_of_other_gpus_starts(tmp_path, holder):
    holder(2)
    with pytest.raises(StillWaiting, match=r"waiting for 2 GPUs \(1 free\)"):
        lease(tmp_path, need=2)

    assert lease(tmp_path, ("GPU-c",)).uuids == ("GPU-c",)


def test_a_run_that_waits_for_many_gpus_is_not_overtaken(tmp_path, holder):
    first, _ = holder(2)
    large, said = holder(3)

    with pytest.raises(StillWaiting, match=r"waiting for 1 GPU \(behind another run\)"):
        lease(tmp_path)
    first.kill()

    assert said == "waiting for 3 GPUs (1 free)"
    assert next(line for line in large.stdout if "waiting" not in line) == "GPU-a GPU-b GPU-c\n"


def test_a_wait_is_bounded_and_its_error_says_what_to_do(tmp_path, holder):
    holder(3)
    seconds = iter(range(100))
    waits = []
    request = GpuRequest(uuids=GPUS, need=2, most=2)

    with pytest.raises(InsufficientResources, match=r"waiting for 2 GPUs \(0 free\) for 5 s; .*NIGHTSHIFT_GPU_WAIT_SE"):
        wait_for_gpus(tmp_path, request, waits.append, limit_seconds=5, now=lambda: next(seconds), pause=lambda _: None)

    assert waits == ["waiting for 2 GPUs (0 free)"] * 4


def test_every_user_of_the_machine_can_lock_and_only_owners_remove(tmp_path):
    folder = tmp_path / "gpus"
    before = os.umask(0o077)
    try:
        lease(folder).release()
    finally:
        os.umask(before)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}


def test_a_link_is_not_followed_and_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "GPU-a.lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StorageError, match=r"cannot hold the locks .*set NIGHTSHIFT_GPU_LOCKS to a folder") as caught:
        lease(tmp_path)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "elsewhere").exists()


def test_many_threads_that_lease_at_once_never_share_a_gpu(tmp_path):
    holding, shared, lock = set(), [], threading.Lock()

    def work():
        for _ in range(20):
            mine = lease(tmp_path, on_wait=lambda _: None)
            with lock:
                shared.extend(holding & set(mine.uuids))
                holding.update(mine.uuids)
            with lock:
                holding.difference_update(mine.uuids)
                mine.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]

    assert shared == []
