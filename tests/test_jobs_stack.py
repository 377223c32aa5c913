"""`nightshift up`: which process ends which."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster.settings import Settings
from jobs.queue import embedded_redis
from jobs.queue.stack import start_stack
from tests.stack import FAKE_WORKER, arguments_of, eventually

NIGHTSHIFT = [sys.executable, "-m", "jobs"]


def processes_in(storage: Path) -> list[str]:
    """Return the processes that have this storage in their arguments or environment, without this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(storage).encode() in words and int(entry.name) != os.getpid():
            found.append(b" ".join(arguments_of(int(entry.name))).decode())
    return found


def up(storage: Path) -> "subprocess.Popen[str]":
    order = [*NIGHTSHIFT, "up", "--job-workers", "2"]
    process = subprocess.Popen(
        order, env={**os.environ, "NIGHTSHIFT_STORAGE": str(storage)}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Nightshift is up: 2 job workers, storage ")
    return process


def test_ctrl_c_ends_all_of_up(storage: Path) -> None:
    with up(storage) as process:
        lived = len(processes_in(storage))
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()

    assert lived >= 4  # itself, two workers, Redis
    assert process.returncode == 0
    assert processes_in(storage) == []
    assert not (storage / "redis" / "url").exists()


def test_kill_9_of_up_ends_its_children_too(storage: Path) -> None:
    with up(storage) as process:
        process.kill()

    assert eventually(lambda: not processes_in(storage), seconds=15)


def test_a_stack_ends_the_server_that_a_plain_command_left_running(storage: Path) -> None:
    embedded_redis.ensure_running(storage)

    with start_stack(Settings(storage=storage), 1, worker_command=FAKE_WORKER):
        pass

    assert embedded_redis.running(storage) is None


def test_a_stack_leaves_the_server_of_another_stack_alone(storage: Path) -> None:
    with up(storage) as process:
        with start_stack(Settings(storage=storage), 1, worker_command=FAKE_WORKER):
            pass
        still_there = embedded_redis.running(storage) is not None
        process.terminate()

    assert still_there
    assert processes_in(storage) == []
