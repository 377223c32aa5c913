"""A campaign of kills: `python -m tests.kills [--kills 1000] [--seed N] [--seconds N] [--real]`.

Tiny runs go through two job workers while processes of every kind are killed (SIGKILL) or stopped for a while
(SIGSTOP): those that submit, pack and reconcile, job workers, their fork servers, work-horses, guards, trainers,
trainers that publish, and Redis. It prints figures as JSON and exits 1 unless every run succeeded and published once,
every file is whole, no process is left, and each model equals that of an uninterrupted run of the same spec bit for bit
(`kills_report.py`).

The runs are those of `kills_trainer.py`, which take a tenth of a second. With `--real` they are trainings, searches and
exports of the real trainer, and Ray's workers, raylets and GCS are hit too.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster import guard
from cluster.errors import ClusterError
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.index import INDEX_NAME, read_index
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from data_shards.sample_data import write_sample
from data_shards.verify import verify
from jobs.errors import JobError
from jobs.queue import embedded_redis
from jobs.queue.connection import connect
from jobs.queue.reconciler import ReconcilerMemory, reconcile
from jobs.queue.stack import Stack, start_stack
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from jobs.runs.state import RunState, read_state
from tests import kills_report
from tests.kills_trainer import ChainSpec
from tests.stack import FAKE_WORKER, arguments_of
from trainer.specs import ExportSpec, SearchSpec, Spec, TrainSpec, build

WORKERS = 2
KILLS_A_RUN = 4  # then it may end
CHOICES = 3  # kinds of process that are drawn for a kill; that which was hit least is taken
PAUSE_SECONDS = (0.05, 0.8)  # between two kills
STOP_SECONDS = (0.2, 7.0)  # of a stopped process: shorter and longer than the lease
LEASE_SECONDS = 5.0
SHARE_OF_STOPS = 0.25
FORKS = ("submit", "pack", "reconciler")
OF_RUNS = ("job worker", "fork server", "work-horse", "guard", "trainer", "publish")
OF_REAL_RUNS = (*OF_RUNS, "Ray worker", "raylet", "GCS", "search", "export")
WORKER = (*FAKE_WORKER, "--warm", "--trainer")
STEPS = 8
RETRIES = 100
TINY = {"weights": "none", "image_size": 32, "epochs": 3, "head_width": 8, "batch_size": 16, "gpus_per_worker": 0}
PACKING = PackOptions(shard_bytes=20_000, processes=1, allow_leakage=True)


@dataclass
class Campaign:
    """One campaign.

    Attributes:
        settings: Its storage and Redis.
        stack: Its job workers.
        data: The folder with the images and shards.
        draw: The source of all its random choices.
        real: Whether the runs are those of the real trainer.
        runs: Id of each run, and the name of its kind of spec.
        kills: How often each kind was hit by each signal.
        hits: How often each run was hit.
        stopped: Timers that let stopped processes go on.
    """

    settings: Settings
    stack: Stack
    data: Path
    draw: random.Random
    real: bool
    runs: dict[str, str] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    stopped: list[threading.Timer] = field(default_factory=list)

    def specs(self) -> dict[str, Callable[[], Spec]]:
        """The kinds of runs: short ones, or a frozen backbone, a search, an export, two workers, all layers."""
        if not self.real:
            return {"short": lambda: ChainSpec(chain=STEPS)}
        shards = str(self.data / "shards")
        return {
            "frozen": lambda: build(TrainSpec, shards=shards, **TINY),
            "search": lambda: build(SearchSpec, shards=shards, trials=2, **TINY),
            "export": lambda: build(ExportSpec, model=self.reference("frozen"), format="torchscript"),
            "two workers": lambda: build(TrainSpec, shards=shards, workers=2, freeze="none", **TINY | {"epochs": 2}),
            "all layers": lambda: build(TrainSpec, shards=shards, freeze="none", **TINY | {"epochs": 2}),
        }

    def reference(self, kind: str) -> str:
        """Return the id of the uninterrupted run of a kind."""
        return next(run_id for run_id, of in self.runs.items() if of == kind)

    def add_run(self, kind: str) -> str:
        """Submit a run of a kind."""
        run_id = submit(self.settings, self.specs()[kind](), self.request(kind))
        self.runs[run_id] = kind
        return run_id

    def request(self, kind: str) -> JobRequest:
        """Return how a run of a kind is submitted: an export starts after the training of its model."""
        return JobRequest(retries=RETRIES, after=(self.reference("frozen"),) if kind == "export" else ())

    def states(self) -> list[RunState]:
        """Return the states of all its runs."""
        return [read_state(RunPaths.of(self.settings.storage, run_id)) for run_id in self.runs]

    def is_over(self) -> bool:
        """Whether all runs have ended."""
        return all(state.has_ended for state in self.states())

    def step(self) -> None:
        """Kill or stop one process of a random kind, if there is one."""
        self.stack.restart_ended()
        of_runs = OF_REAL_RUNS if self.real else OF_RUNS
        kinds = self.draw.sample((*FORKS, "Redis", *of_runs), CHOICES)
        kind = min(kinds, key=self.hits_of)  # most are not there at most moments
        if kind in FORKS:
            self.kill_fork(kind)
        elif kind == "Redis":
            if server := embedded_redis.running(self.settings.storage):
                self.hit(kind, server.pid)
        else:
            self.hit_run(kind)
        time.sleep(self.draw.uniform(*PAUSE_SECONDS))

    def hits_of(self, kind: str) -> int:
        """Return how often a kind was hit."""
        return sum(count for hit, count in self.kills.items() if hit.startswith(f"{kind}, "))

    def hit(self, kind: str, pid: int) -> None:
        """Send a process SIGKILL, or SIGSTOP and later SIGCONT."""
        stops = self.draw.random() < SHARE_OF_STOPS
        try:
            os.kill(pid, signal.SIGSTOP if stops else signal.SIGKILL)
        except ProcessLookupError:
            return
        if stops:
            longest = 1.0 if kind in ("Redis", *FORKS) else STOP_SECONDS[1]  # this process waits meanwhile
            self.stopped.append(threading.Timer(self.draw.uniform(STOP_SECONDS[0], longest), go_on, [pid]))
            self.stopped[-1].start()
        self.kills[f"{kind}, {'stopped' if stops else 'killed'}"] += 1

    def hit_run(self, kind: str) -> None:
        """Hit a process of a random running run, unless the run was hit often enough."""
        running = [state for state in self.states() if state.state == "running" and state.job_worker]
        allowed = [state for state in running if self.hits[state.id] < KILLS_A_RUN]
        if not allowed:
            return
        state = self.draw.choice(allowed)
        if kind in ("search", "export") and self.runs[state.id] != kind:
            return
        worker = int(str(state.job_worker).split("-")[-2])
        if kind == "publish" and not self.publishes(state):
            return
        found = [worker] if kind == "job worker" else self.processes(worker, kind)
        if found:
            self.hits[state.id] += 1
            self.hit(kind, self.draw.choice(found))

    def publishes(self, state: RunState) -> bool:
        """Wait a little for the run to write a draft; return whether it does."""
        drafts = RunPaths.of(self.settings.storage, state.id).attempts / f"{state.attempt}.drafts"
        until = time.monotonic() + 1
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                if any(drafts.iterdir()):
                    return True
        return False

    @staticmethod
    def processes(worker: int, kind: str) -> list[int]:
        """Return the processes of a kind below a job worker."""
        below = {pid: command_of(pid) for pid in guard.descendants(worker)}
        horses = [pid for pid, command in below.items() if WORKER[2] in command]
        servers = [pid for pid, command in below.items() if "fork_server " in command and "guard.py" not in command]
        if kind == "fork server":
            return servers
        marks = {"guard": "guard.py", "Ray worker": "ray::", "raylet": "raylet/raylet ", "GCS": "gcs_server"}
        if kind == "work-horse":
            return horses
        if kind in marks:
            return [pid for pid, command in below.items() if command and marks[kind] in command]
        others = {*horses, *servers}
        own = [pid for pid, command in below.items() if command and pid not in others and "guard.py" not in command]
        if kind in ("search", "export"):
            return own
        return [pid for pid in own if "trainer " in below[pid]]

    def kill_fork(self, kind: str) -> None:
        """Start one action in a fork of this process, and kill or stop it at a random moment of its first ones."""
        target = self.data / f"{kind}-{secrets.token_hex(4)}"
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                self.act(kind, target)
            os._exit(0)
        time.sleep(self.draw.uniform(0, 0.3 if kind == "pack" else 0.05))
        self.hit(kind, pid)
        os.waitpid(pid, 0)
        if kind == "pack":
            if not (target / INDEX_NAME).exists():  # one that was stopped has come to its end
                pack(self.data / "images", target, PACKING)
            assert read_index(str(target)).digest == read_index(str(self.data / "shards")).digest, target
            assert list(verify(str(target))) == [], target
            shutil.rmtree(target)
        self.adopt_submitted()

    def act(self, kind: str, target: Path) -> None:
        if kind == "pack":
            pack(self.data / "images", target, PACKING)
        elif kind == "submit":
            spec = next(iter(self.specs().values()))()
            submit(self.settings, spec, JobRequest(name=target.name, retries=RETRIES))
        else:
            with connect(self.settings) as connection:
                reconcile(self.settings, connection, ReconcilerMemory(), every_run=True)

    def adopt_submitted(self) -> None:
        """Take over the runs that killed submits have published."""
        for run_id in run_state.all_ids(self.settings.storage):
            self.runs.setdefault(run_id, next(iter(self.specs())))


def go_on(pid: int) -> None:
    """Let a stopped process go on, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def command_of(pid: int) -> str:
    try:
        return b" ".join(arguments_of(pid)).decode(errors="replace")
    except OSError:
        return ""


def run_campaign(folder: Path, kills: int, seed: int, seconds: float, *, real: bool = False) -> dict[str, object]:
    """Return the figures of a campaign in a folder."""
    data, storage = folder / "data", folder / "storage"
    write_sample(data / "images", limit=120)
    pack(data / "images", data / "shards", PACKING)
    settings = Settings(storage=storage, lease_seconds=LEASE_SECONDS).with_storage_ready()
    began = time.monotonic()
    with start_stack(
        settings, WORKERS, worker_command=(*WORKER, "trainer" if real else "tests.kills_trainer")
    ) as stack:
        here = replace(settings, redis_url=stack.settings.redis_url)
        campaign = Campaign(here, stack, data, random.Random(seed), real)
        for kind in campaign.specs():
            campaign.add_run(kind)
        wait_until_over(campaign)
        hit_everything(campaign, kills, began + seconds)
        for timer in campaign.stopped:
            timer.join()
        wait_until_over(campaign)
        wait_until_unwatched(campaign)
    hit = dict(sorted(campaign.kills.items()))
    figures = {
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "kills": campaign.kills.total(),
        "by kind": hit,
    }
    return figures | kills_report.verdict(storage, campaign.runs)


def hit_everything(campaign: Campaign, kills: int, until: float) -> None:
    """Hit processes until there were enough kills or the time is over, with a run for each job worker at all times."""
    kinds = list(campaign.specs())
    while campaign.kills.total() < kills and time.monotonic() < until:
        with contextlib.suppress(JobError, ClusterError):  # Redis is away
            if sum(not state.has_ended for state in campaign.states()) < WORKERS:
                campaign.add_run(campaign.draw.choice(kinds))
        campaign.step()


def wait_until_over(campaign: Campaign, seconds: float = 1200.0) -> None:
    """Wait until all runs have ended, and keep the stack up."""
    until = time.monotonic() + seconds
    while not campaign.is_over() and time.monotonic() < until:
        campaign.stack.restart_ended()
        time.sleep(0.1)


def wait_until_unwatched(campaign: Campaign, seconds: float = 30.0) -> None:
    """Wait until the job workers have finalized the last runs."""
    until = time.monotonic() + seconds
    while run_state.pending_ids(campaign.settings.storage) and time.monotonic() < until:
        campaign.stack.restart_ended()
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--seconds", type=float, default=7200.0, help="limit of time")
    parser.add_argument("--real", action="store_true", help="run the real trainer")
    parser.add_argument("--keep", action="store_true", help="keep the folder, as is done after a fault")
    given = parser.parse_args()
    print(f"seed {given.seed}", file=sys.stderr, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="ns-kills-"))
    figures = run_campaign(folder, given.kills, given.seed, given.seconds, real=given.real)
    print(json.dumps(figures, indent=2))
    is_clean = kills_report.is_clean(figures)
    if is_clean and not given.keep:
        shutil.rmtree(folder)
    else:
        print(f"kept {folder}", file=sys.stderr, flush=True)
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
