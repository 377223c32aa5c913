"""Helpers of the queue's tests: fake runs, waiting for a state, and listing a run's processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil
from redis import Redis

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import embedded_redis
from jobs.queue.queues import queue
from jobs.queue.submit import submit
from jobs.runs.request import JobRequest
from jobs.runs.state import RunState, State, changing, read_state, write_state
from trainer.specs import Spec

PATIENCE_SECONDS = 600.0  # for what takes seconds on an idle machine: a busy one must not fail a test
FAKE_WORKER = (sys.executable, "-m", "tests.fake_worker")


class FakeSpec(Spec):
    """A spec for `tests/fake_trainer.py`; with `holds`, it waits after its first step for a file `go` in its folder."""

    kind: Literal["train"] = "train"
    steps: int = 1
    step_seconds: float = 0.0
    ending: Literal["succeed", "fail", "crash", "exit", "nothing", "newer"] = "succeed"
    holds: bool = False
    stubborn: bool = False
    leaves_child: bool = False


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def eventually(holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Return whether a condition becomes true within `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


def command_in_group(*words: str, storage: Path) -> psutil.Popen:
    """Start `nightshift WORDS` in a process group of its own, as a terminal does, with Ctrl-C as a terminal has it."""
    return psutil.Popen(
        [sys.executable, "-m", "jobs", *words],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"NIGHTSHIFT_STORAGE": str(storage)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored after a shell's `&`
    )


def state_of(storage: Path, run_id: str) -> RunState:
    return read_state(RunPaths.of(storage, run_id))


def reaches(storage: Path, run_id: str, *states: str) -> RunState:
    """Return the run's state once it is one of `states`; fail with its last state on a timeout."""
    reached = eventually(lambda: state_of(storage, run_id).state in states)
    assert reached, state_of(storage, run_id)
    return state_of(storage, run_id)


def start_run(settings: Settings, spec: FakeSpec, request: JobRequest | None = None) -> str:
    """Submit a run and wait for its first step; return its id."""
    run_id = submit(settings, spec, request)
    assert eventually((RunPaths.of(settings.storage, run_id).folder / "steps.jsonl").exists)
    return run_id


def processes_of(run_id: str) -> list[int]:
    """Return the processes that have a run's id in their environment, without zombies."""
    mark, found = f"NIGHTSHIFT_RUN={run_id}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def processes_in(storage: Path) -> list[str]:
    """Return the processes that have this storage in their arguments or environment, without this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            if str(storage).encode() in words and int(entry.name) != os.getpid():
                found.append(b" ".join(arguments_of(int(entry.name))).decode(errors="replace"))
        except OSError:
            continue
    return found


def trainer_of(run_id: str) -> int:
    """Return the trainer process: neither its guard nor its children."""
    return next(pid for pid in processes_of(run_id) if b"tests.fake_trainer" in arguments_of(pid)[2:3])


def arguments_of(pid: int) -> list[bytes]:
    """Return a process' command line, part by part."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def children_of(pid: int) -> list[int]:
    """Return the direct children of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(entry.parent.name))
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the values of a JSON Lines file, an empty list if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def restart_redis(storage: Path) -> None:
    """Restart a killed embedded server at its old address, as its supervisor would."""
    order = [embedded_redis.server_program(), str(storage / "redis" / "redis.conf")]
    process = subprocess.Popen(order, start_new_session=True)
    process.returncode = 0  # it ends with the fixture, not with this object


def take_next(redis: Redis) -> None:
    """Take the next entry out of the queue, as a worker does when it starts the run."""
    entry = queue(redis, "normal").next_entry()
    assert entry is not None
    redis.lrem(queue(redis, "normal").intermediate_queue_key, 1, entry.id)


def finish(settings: Settings, run_id: str, state: State) -> None:
    """Write the state of a run that has ended, as its job worker does."""
    paths = RunPaths.of(settings.storage, run_id)
    with changing(paths) as found:
        write_state(paths, found.with_state(state))
