"""Runs as jobs of a standing Ray cluster with token auth: a real one, on this machine."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.errors import LaunchError
from cluster.ray_jobs import RayJobLauncher, RayJobs
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import actions
from jobs.queue.job_worker import launcher_for
from jobs.queue.stack import Stack, start_stack
from jobs.queue.submit import submit
from tests.stack import FakeSpec, eventually, free_port, lines_of, processes_of, reaches, state_of

pytestmark = pytest.mark.slow

RAY_WORKER = (sys.executable, "-m", "tests.fake_worker", "--ray")


@dataclass
class Head:
    """A Ray head of our own."""

    url: str
    token: str
    folder: Path

    def start(self) -> None:
        dashboard = self.url.rpartition(":")[2]
        ray = str(Path(sys.executable).parent / "ray")
        order = [ray, "start", "--head", "--num-cpus=2", f"--port={free_port()}", f"--dashboard-port={dashboard}"]
        order += [f"--temp-dir={self.folder}", "--disable-usage-stats", "--include-dashboard=true"]
        order += [f"--dashboard-agent-listen-port={free_port()}"]  # the usual one may not be free again so soon
        subprocess.run(order, env=self.environment(), check=True, capture_output=True)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def kill(self) -> None:
        """End every process of it at once."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
                mine = f"RAY_AUTH_TOKEN={self.token}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if (mine or str(self.folder).encode() in command) and b"tests.fake_worker" not in command:
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = Path(f"/tmp/ns-ray-{secrets.token_hex(3)}")  # Ray's own sockets allow no long path
    found = Head(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16), folder)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def on_ray(settings: Settings, head: Head) -> Settings:
    return replace(settings, ray_jobs_url=head.url, ray_token=head.token, lease_seconds=15.0)


@pytest.fixture
def worker(on_ray: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setenv("NIGHTSHIFT_RAY_JOBS_URL", str(on_ray.ray_jobs_url))
    monkeypatch.setenv("RAY_AUTH_TOKEN", str(on_ray.ray_token))
    with start_stack(on_ray, 1, worker_command=RAY_WORKER) as stack:
        yield stack


def test_without_the_token_the_cluster_refuses(head: Head, storage: Path) -> None:
    launcher = RayJobLauncher(RayJobs(head.url, "wrong"), 3.0)

    with pytest.raises(LaunchError, match="refused train-"):
        launcher.start(RunPaths.of(storage, "train-20261123-020000-abc123"), 1)

    assert "wrong" not in repr(launcher)


@pytest.mark.parametrize(
    ("uri", "told"), [("http://me:hunter2@mlflow:5000", (("MLFLOW_TRACKING_URI", "sent-by-job-workers"),)), (None, ())]
)
def test_a_ray_job_is_told_that_job_workers_send_its_run_to_mlflow(
    tmp_path: Path, uri: str | None, told: tuple[tuple[str, str], ...]
) -> None:
    launcher = launcher_for(Settings(storage=tmp_path, ray_jobs_url="http://127.0.0.1:8265", mlflow_uri=uri))

    assert isinstance(launcher, RayJobLauncher)
    assert launcher.environment == told  # Ray shows it to all who may look at its jobs


def test_a_run_succeeds_as_a_ray_job_with_its_log_in_storage(worker: Stack, on_ray: Settings) -> None:
    run_id = submit(on_ray, FakeSpec(steps=3))

    state = reaches(on_ray.storage, run_id, "succeeded", "failed", "lost")

    assert (state.state, state.attempt, state.place) == ("succeeded", 1, "ray")
    assert f"attempt 1 of {run_id}" in RunPaths.of(on_ray.storage, run_id).log.read_text()


def test_cancel_stops_the_ray_job(worker: Stack, on_ray: Settings) -> None:
    run_id = start_run(on_ray)

    state = actions.cancel(on_ray, RunPaths.of(on_ray.storage, run_id), at_once=True)

    assert state.state == "cancelled"
    assert eventually(lambda: not processes_of(run_id), seconds=20)


def test_a_worker_that_is_drained_leaves_the_run_and_the_next_watches_it(worker: Stack, on_ray: Settings) -> None:
    run_id = start_run(on_ray, seconds=12)

    worker.workers[0].terminate()
    assert worker.workers[0].wait(timeout=100) == 0
    left = state_of(on_ray.storage, run_id)
    worker.restart_ended()
    state = reaches(on_ray.storage, run_id, "succeeded", "failed", "lost")

    assert (left.state, left.job_worker) == ("running", None)
    assert (state.state, state.attempt, state.losses) == ("succeeded", 1, 0)
    assert [line["attempt"] for line in lines_of(RunPaths.of(on_ray.storage, run_id).folder / "published.jsonl")] == [1]


def test_a_head_that_vanishes_makes_a_loss_and_the_next_attempt_goes_on(
    worker: Stack, on_ray: Settings, head: Head
) -> None:
    run_id = start_run(on_ray, seconds=15)

    head.kill()
    lost = reaches_loss(on_ray, run_id)
    head.start()
    state = reaches(on_ray.storage, run_id, "succeeded", "failed", "lost")

    assert lost == 1
    assert state.state == "succeeded", state
    steps = lines_of(RunPaths.of(on_ray.storage, run_id).folder / "steps.jsonl")
    assert {step["attempt"] for step in steps} == {1, state.attempt}


def start_run(settings: Settings, seconds: float = 60) -> str:
    run_id = submit(settings, FakeSpec(steps=int(seconds * 10), step_seconds=0.1))
    assert eventually((RunPaths.of(settings.storage, run_id).folder / "steps.jsonl").exists, seconds=90)
    return run_id


def reaches_loss(settings: Settings, run_id: str) -> int:
    assert eventually(lambda: state_of(settings.storage, run_id).losses > 0, seconds=60)
    return state_of(settings.storage, run_id).losses
