"""A soak of the queue: `python -m tests.queue_soak [RUNS] [WORKERS]`.

Short runs through job workers with fork servers while, every few seconds, a random process of them or the Redis is
killed. Prints figures as JSON and exits 1 unless every run succeeded and was published once, and nothing is left.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import embedded_redis
from jobs.queue.stack import Stack, start_stack
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests.kills import Campaign
from tests.stack import FAKE_WORKER, FakeSpec, lines_of, processes_of, restart_redis, state_of

PAUSE_SECONDS = (2.0, 5.0)
VICTIMS = ("work-horse", "guard", "trainer", "fork server", "worker", "redis")
LIMIT_SECONDS = 1800.0


def main(runs: int, workers: int) -> int:
    draw = random.Random(20261123)
    with tempfile.TemporaryDirectory(prefix="ns-soak-") as folder:
        settings = Settings(storage=Path(folder), lease_seconds=5.0).with_storage_ready()
        server = embedded_redis.ensure_running(settings.storage)
        settings = replace(settings, redis_url=server.url)
        with start_stack(settings, workers, worker_command=(*FAKE_WORKER, "--warm")) as stack:
            ids = [submit(settings, FakeSpec(steps=4, step_seconds=0.1), JobRequest(retries=20)) for _ in range(runs)]
            figures = soak(settings, stack, draw)
        figures |= verdict(settings, ids)
        embedded_redis.stop(settings.storage)
    print(json.dumps(figures, indent=2))
    return 0 if figures["succeeded"] == figures["published once"] == runs and not figures["processes left"] else 1


def soak(settings: Settings, stack: Stack, draw: random.Random) -> dict[str, object]:
    kills: Counter[str] = Counter()
    workers: dict[int, list[tuple[int, int]]] = {}
    fork_servers: dict[int, list[tuple[int, int]]] = {}
    began = time.monotonic()
    while run_state.pending_ids(settings.storage) and time.monotonic() - began < LIMIT_SECONDS:
        time.sleep(draw.uniform(*PAUSE_SECONDS))
        stack.restart_ended()
        for worker in stack.workers:
            workers.setdefault(worker.pid, []).append(size_of(worker.pid))
            for pid in Campaign.processes(worker.pid, "fork server"):
                fork_servers.setdefault(pid, []).append(size_of(pid))
        kills[kill(settings, stack, draw.choice(VICTIMS), draw)] += 1
    return {
        "seconds": round(time.monotonic() - began),
        "kills": dict(kills),
        "workers in all": len(workers),
        "longest lived worker": lived(workers),
        "fork servers in all": len(fork_servers),
        "longest lived fork server": lived(fork_servers),
    }


def lived(sizes: dict[int, list[tuple[int, int]]]) -> dict[str, object]:
    """Return the MB and file handles of the process that was looked at most often."""
    looks = max(sizes.values(), key=len)
    return {
        "looks": len(looks),
        "at a third": looks[len(looks) // 3],  # its first runs import what they need
        "last": looks[-1],
        "most": (max(mb for mb, _ in looks), max(files for _, files in looks)),
    }


def kill(settings: Settings, stack: Stack, victim: str, draw: random.Random) -> str:
    worker = draw.choice(stack.workers)
    if victim == "worker":
        worker.kill()
        return victim
    if victim == "redis":
        return kill_redis(settings)
    below = Campaign.processes(worker.pid, victim)
    if not below:
        return "nobody"
    try:
        os.kill(below[0], signal.SIGKILL)
    except ProcessLookupError:
        return "nobody"
    return victim


def kill_redis(settings: Settings) -> str:
    running = embedded_redis.running(settings.storage)
    if running is None:
        return "nobody"
    os.kill(running.pid, signal.SIGKILL)
    time.sleep(1)
    restart_redis(settings.storage)
    return "redis"


def verdict(settings: Settings, ids: list[str]) -> dict[str, object]:
    states = [state_of(settings.storage, run_id) for run_id in ids]
    published = [lines_of(RunPaths.of(settings.storage, run_id).folder / "published.jsonl") for run_id in ids]
    return {
        "states": dict(Counter(state.state for state in states)),
        "succeeded": sum(state.state == "succeeded" for state in states),
        "published once": sum(len(lines) == 1 for lines in published),
        "attempts": sum(state.attempt for state in states),
        "losses": sum(state.losses for state in states),
        "processes left": sum(len(processes_of(run_id)) for run_id in ids),
    }


def size_of(pid: int) -> tuple[int, int]:
    """Return a process' resident memory in MB and its open files; zeros when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 10**6, len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except (OSError, IndexError):
        return 0, 0


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(numbers or [300, 2])))
