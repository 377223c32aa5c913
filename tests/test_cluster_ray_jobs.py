"""Runs as jobs of a standing Ray cluster with token auth: a real one, on this machine."""

import sys
from collections.abc import Iterator
from dataclasses import replace
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
from tests.ray_cluster import Cluster
from tests.stack import FakeSpec, eventually, lines_of, processes_of, reaches, state_of

pytestmark = pytest.mark.slow

RAY_WORKER = (sys.executable, "-m", "tests.fake_worker", "--ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that also runs the trainers."""
    found = Cluster(head_cpus=2, with_jobs=True)
    yield found
    found.remove()


@pytest.fixture
def on_ray(settings: Settings, cluster: Cluster) -> Settings:
    return replace(
        settings, ray_jobs_url=cluster.jobs_url, ray_token=cluster.token["RAY_AUTH_TOKEN"], lease_seconds=60.0
    )


@pytest.fixture
def worker(on_ray: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setenv("NIGHTSHIFT_RAY_JOBS_URL", str(on_ray.ray_jobs_url))
    monkeypatch.setenv("RAY_AUTH_TOKEN", str(on_ray.ray_token))
    with start_stack(on_ray, 1, worker_command=RAY_WORKER) as stack:
        yield stack


def test_without_the_token_the_cluster_refuses(cluster: Cluster, storage: Path) -> None:
    launcher = RayJobLauncher(RayJobs(str(cluster.jobs_url), "wrong"), 3.0)

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
    assert eventually(lambda: not processes_of(run_id))


def test_a_worker_that_is_drained_leaves_the_run_and_the_next_watches_it(worker: Stack, on_ray: Settings) -> None:
    run_id = start_run(on_ray)

    worker.workers[0].terminate()
    assert worker.workers[0].wait(timeout=600) == 0
    left = state_of(on_ray.storage, run_id)
    worker.restart_ended()
    go_on(on_ray, run_id)
    state = reaches(on_ray.storage, run_id, "succeeded", "failed", "lost")

    assert (left.state, left.job_worker) == ("running", None)
    assert (state.state, state.attempt, state.losses) == ("succeeded", 1, 0)
    assert [line["attempt"] for line in lines_of(RunPaths.of(on_ray.storage, run_id).folder / "published.jsonl")] == [1]


def test_a_head_that_vanishes_makes_a_loss_and_the_next_attempt_goes_on(
    worker: Stack, on_ray: Settings, cluster: Cluster
) -> None:
    run_id = start_run(on_ray)

    cluster.kill()
    lost = reaches_loss(on_ray, run_id)
    go_on(on_ray, run_id)
    cluster.start_head()
    state = reaches(on_ray.storage, run_id, "succeeded", "failed", "lost")

    assert lost == 1
    assert state.state == "succeeded", state
    steps = lines_of(RunPaths.of(on_ray.storage, run_id).folder / "steps.jsonl")
    assert {step["attempt"] for step in steps} == {1, state.attempt}


def start_run(settings: Settings) -> str:
    """Start a run that waits for `go_on` after its first step."""
    run_id = submit(settings, FakeSpec(steps=3, holds=True))
    assert eventually((RunPaths.of(settings.storage, run_id).folder / "steps.jsonl").exists)
    return run_id


def go_on(settings: Settings, run_id: str) -> None:
    (RunPaths.of(settings.storage, run_id).folder / "go").touch()


def reaches_loss(settings: Settings, run_id: str) -> int:
    assert eventually(lambda: state_of(settings.storage, run_id).losses > 0)
    return state_of(settings.storage, run_id).losses
