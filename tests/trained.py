"""Runs of the trainer for tests: in this process, or as a real process where the test kills it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import guard
from cluster.launch import TRAINER
from cluster.lease import Lease, latest_attempt
from cluster.ray_jobs import RayJobLauncher, RayJobs
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from tests.ray_cluster import Cluster
from trainer.__main__ import command_for
from trainer.attempt import Attempt
from trainer.result import RunResult
from trainer.specs import EvaluateSpec, Spec, TrainSpec, build
from trainer.training.checkpointer import Checkpointer
from trainer.training.loop import EpochMetrics

LEASE_SECONDS, POLL_SECONDS = 60.0, 3.0
QUICK = {
    "weights": "none", "image_size": 32, "epochs": 2, "head_width": 32, "class_weights": False, "patience": None,
}  # fmt: skip


def train_spec(shards: Path, **options: Any) -> TrainSpec:
    """Return the spec of a training of a second or two."""
    return build(TrainSpec, shards=str(shards), **(QUICK | options))


def new_run(storage: Path, spec: Spec, name: str = "run") -> RunPaths:
    """Create the folder of a run that has not started."""
    paths = RunPaths(storage / "runs" / name)
    paths.folder.mkdir(parents=True)
    paths.spec.write_text(json.dumps(spec.to_json()))
    return paths


def lease_in(folder: Path) -> Lease:
    """Claim the next attempt of the run in a folder."""
    paths = RunPaths(folder)
    return Lease.claim(paths, after=latest_attempt(paths))


def attempted(paths: RunPaths, spec: Spec) -> RunResult:
    """Run the next attempt in this process and publish its result."""
    settings = Settings(storage=paths.storage)
    attempt = Attempt.of(paths.folder, None, settings)
    result = replace(command_for(spec)(attempt, spec), features=attempt.features)
    result.publish(attempt.lease)
    return result


def done(storage: Path, spec: Spec, name: str = "run") -> tuple[RunPaths, RunResult]:
    """Create a run and run it in this process."""
    paths = new_run(storage, spec, name)
    return paths, attempted(paths, spec)


def evaluated(storage: Path, model: Path, shards: Path, name: str = "evaluation", **options: Any) -> RunResult:
    """Evaluate a published model in this process."""
    return done(storage, build(EvaluateSpec, model=str(model), shards=str(shards), **options), name)[1]


def trainer_process(paths: RunPaths, *, attempt: int | None = None, **environment: str) -> "subprocess.Popen[bytes]":
    """Start `python -m trainer` on a run, under the guard process as the launcher does; its output goes to the log."""
    number = [] if attempt is None else ["--attempt", str(attempt)]
    command = [sys.executable, "-m", "trainer", str(paths.folder), *number]
    with paths.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *command],
            stdout=log,
            stderr=log,
            env={**os.environ, "NIGHTSHIFT_STORAGE": str(paths.storage), **environment},
            start_new_session=True,
        )


def ray_job(cluster: Cluster, paths: RunPaths) -> int | None:
    """Run the next attempt as a job of a Ray cluster with the Jobs API; return its exit code."""
    jobs = RayJobs(str(cluster.jobs_url), cluster.token["RAY_AUTH_TOKEN"])
    attempt = Lease.claim(paths, after=latest_attempt(paths)).attempt
    run, codes = RayJobLauncher(jobs, LEASE_SECONDS, TRAINER).start(paths, attempt), list[int | None]()
    wait_until(lambda: codes.append(run.wait(POLL_SECONDS)) or codes[-1] is not None)
    return codes[-1]


def at_epoch(
    monkeypatch: pytest.MonkeyPatch, epoch: int, happens: Callable[[], object], *, in_attempt: int = 1
) -> None:
    """Call `happens` in an attempt after an epoch was logged and before its checkpoint is saved."""
    log_epoch = Checkpointer.log_epoch

    def logged(self: Checkpointer, metrics: EpochMetrics) -> None:
        log_epoch(self, metrics)
        if metrics.epoch == epoch and self.attempt.number == in_attempt:
            happens()

    monkeypatch.setattr(Checkpointer, "log_epoch", logged)


def stop_at_epoch(monkeypatch: pytest.MonkeyPatch, paths: RunPaths, epoch: int, *, in_attempt: int = 1) -> None:
    """Ask an attempt to stop after an epoch; it stops after the first step of the next."""
    request = json.dumps({"reason": "cancel", "attempt": in_attempt})
    at_epoch(monkeypatch, epoch, lambda: paths.stop.write_text(request), in_attempt=in_attempt)


def wait_until(happened: Callable[[], bool]) -> bool:
    """Return whether `happened` returns True within ten minutes, so that a busy machine does not fail a test."""
    until = time.monotonic() + 600
    while time.monotonic() < until:
        if happened():
            return True
        time.sleep(0.02)
    return False
