"""A whole cluster of pods on this machine: Redis with ACL (and TLS), Ray with token auth, a job worker.

Every command, argument, environment, mount and probe comes from the rendered manifests, but for a shorter drain;
`k8s_raynode` replaces KubeRay.
Each pod has its own network with the NetworkPolicies, a read-only root and a random user id.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from jobs.cli.main import cli
from tests.k8s_manifests import Manifest, of_kind, pods, rendered
from tests.k8s_namespaces import needs_pods, redis_has_tls, secrets_made, wait_until
from tests.k8s_raynode import HEALTH, head_service, ray_command, ray_environment
from tests.k8s_sandbox import Node, RunningPod
from tests.test_k8s_pods import open_folder
from tests.test_k8s_ray_job import files_of
from trainer.tracking.history import read_epoch_lines

pytestmark = [needs_pods, pytest.mark.slow, pytest.mark.timeout(1800)]
PLAN = {
    "redis-0": "redis",
    "head-0": "ray-head",
    "head-1": "ray-head",
    "cpu-0": "ray-worker",
    "cpu-1": "ray-worker",
    "job-worker-0": "job-worker",
    "cli-0": "cli",
    "submitter-0": "job-submitter",
}
TINY = ["--gpus-per-worker", "0", "--weights", "none", "--freeze", "none", "--image-size", "32"]
RENDER = ["k8s", "render", "train", "/storage/digits", *TINY, "--epochs", "1", "--image", "nightshift:0.1.0"]
SHORT_DRAIN = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "10"}  # instead of 60: the test waits for its end
# Few, because two shared cores train 8 images/s.
FEW_DIGITS = """
from pathlib import Path
from data_shards.sample_data import write_sample
write_sample(Path("/tmp/digits"), limit=400)
"""
STATUS = """
import sys, urllib.error, urllib.request
headers = {"Authorization": f"Bearer {sys.argv[2]}"} if sys.argv[2:] else {}
request = urllib.request.Request(sys.argv[1], headers=headers)
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@dataclass(frozen=True)
class Cluster:
    """The running pods, and what is needed to start more."""

    node: Node
    ray: Manifest

    @property
    def token(self) -> str:
        """Ray's token."""
        return self.node.secrets["ray-token"]["auth_token"]

    @property
    def runs(self) -> Path:
        """The runs folder, as a path of this machine."""
        return self.node.folder / "claims" / "storage" / "runs"

    def pod(self, name: str) -> RunningPod:
        """Return a pod that was started."""
        return next(pod for pod in reversed(self.node.running) if pod.name == name)

    def start_ray(self, name: str) -> RunningPod:
        """Start a Ray pod, again if it ends, and wait until the probe that KubeRay adds succeeds."""
        wait_until(lambda: self.keep_ray(name), f"{name} is healthy")
        return self.pod(name)

    def keep_ray(self, name: str) -> bool:
        """Start a Ray pod that does not run, as KubeRay does, and return whether it is healthy."""
        pod = self.node.plan[name]
        if not self.runs_now(name):
            environment = {**ray_environment(self.ray, pod, self.node.secrets), **SHORT_DRAIN}
            self.node.start(name, ray_command(self.ray, pod), **environment)
        return self.pod(name).exec(["python", "-c", STATUS, HEALTH]).stdout == "200\n"

    def runs_now(self, name: str) -> bool:
        """Whether a pod was started and has not ended."""
        return any(pod.name == name and pod.holder.poll() is None for pod in self.node.running)

    def submit(self, epochs: int = 3) -> str:
        """Queue a training and return its id once it is in its second epoch."""
        queued = self.pod("cli-0").exec(["nightshift", "train", "/storage/digits", *TINY, "--epochs", str(epochs)])
        run_id = queued.stdout.strip()
        self.wait_for_epoch(run_id, 2)
        return run_id

    @property
    def worker(self) -> str:
        """The name of the newest Ray worker that runs."""
        return next(name for name in ("cpu-1", "cpu-0") if self.runs_now(name))

    @property
    def idle_worker(self) -> str:
        """The name of a Ray worker that does not run."""
        return next(name for name in ("cpu-0", "cpu-1") if not self.runs_now(name))

    def epochs(self, run_id: str) -> list[int]:
        """Return the epochs that a run has logged, each once."""
        return [line["epoch"] for line in read_epoch_lines(self.runs / run_id / "metrics.jsonl")]

    def ended(self, run_id: str, *ray: str) -> dict[str, Any]:
        """Return a run's state when it has ended; until then, restart the job worker and these Ray pods if they end."""

        def has_ended() -> bool:
            if not self.runs_now("job-worker-0"):
                self.node.start("job-worker-0")
            for name in ray:
                self.keep_ray(name)
            return self.file(run_id, "state.json").get("state") in ("succeeded", "failed", "lost", "cancelled")

        wait_until(has_ended, f"{run_id} has ended")
        return self.file(run_id, "state.json")

    def file(self, run_id: str, name: str) -> dict[str, Any]:
        """Return a JSON file of a run's folder, an empty dict while it does not exist."""
        file = self.runs / run_id / name
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def wait_for_epoch(self, run_id: str, epoch: int) -> None:
        """Wait until a run is in an epoch, counted from 1."""
        wait_until(lambda: self.file(run_id, "progress.json").get("epoch", 0) >= epoch, f"{run_id} in epoch {epoch}")


def pack_few_digits(here: RunningPod) -> None:
    """Pack a data set onto the storage."""
    assert here.exec(["python", "-c", FEW_DIGITS]).returncode == 0
    pack = ["nightshift", "shards", "pack", "/tmp/digits", "/storage/digits", "--image-size", "0", "--allow-leakage"]
    packed = here.exec([*pack, "--shard-size", "16KB"])
    assert packed.returncode == 0, packed.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Redis, the head, one worker and the pod `cli`, with a packed data set on the storage."""
    options = ["tls"] if redis_has_tls() else []
    manifests = rendered("kind", options)
    ray = of_kind(manifests, "RayCluster")[0]
    alone = yaml.safe_load_all(CliRunner().invoke(cli, RENDER).stdout)
    parts = {pod.labels["app.kubernetes.io/component"]: pod for pod in [*pods(list(alone)), *pods(manifests)]}
    plan = {name: parts[part] for name, part in PLAN.items()}
    services = {"redis": "redis-0", "ray-head-svc": "head-0", head_service(ray): "head-0"}
    secrets = secrets_made(*(f"--{option}" for option in options))
    with Node(open_folder(tmp_path_factory), manifests, secrets, plan, services) as node:
        node.start("redis-0")
        pack_few_digits(node.start("cli-0"))
        standing = Cluster(node, ray)
        standing.start_ray("head-0")
        standing.start_ray("cpu-0")
        yield standing


def test_ray_rejects_requests_without_the_token(cluster):
    ask = ["python", "-c", STATUS, "http://ray-head-svc:8265/api/jobs/"]

    assert cluster.pod("cli-0").exec(ask).stdout == "401\n"
    assert cluster.pod("cli-0").exec([*ask, "guessed"]).stdout in ("401\n", "403\n")
    assert cluster.pod("cli-0").exec([*ask, cluster.token]).stdout == "200\n"


def test_doctor_distinguishes_a_valid_token_from_an_invalid_one(cluster):
    inside = cluster.pod("cli-0").exec(["nightshift", "doctor"])
    outside = cluster.pod("cli-0").exec(["nightshift", "doctor"], RAY_AUTH_TOKEN="guessed")

    assert inside.returncode == 0, inside.stdout
    assert outside.returncode == 1
    assert "RAY_AUTH_TOKEN" in outside.stdout
    assert "guessed" not in outside.stdout


@pytest.fixture(scope="module")
def job_worker(cluster: Cluster) -> RunningPod:
    """A job worker whose readiness probe has succeeded."""
    pod = cluster.node.start("job-worker-0")
    wait_until(lambda: pod.exec(pod.container["readinessProbe"]["exec"]["command"]).returncode == 0, "it is ready")
    return pod


def test_a_queued_search_succeeds_and_writes_a_leaderboard(cluster, job_worker):
    wish = ["--trials", "2", "--epochs", "2", "--weights", "none", "--image-size", "32", "--gpus-per-worker", "0"]

    queued = cluster.pod("cli-0").exec(["nightshift", "search", "/storage/digits", *wish, "--concurrency", "1"])
    search_id = queued.stdout.strip()
    waited = cluster.pod("cli-0").exec(["nightshift", "wait", search_id, "--timeout", "20m"])
    table = json.loads(cluster.pod("cli-0").exec(["nightshift", "trials", search_id, "--json"]).stdout)

    assert waited.returncode == 0, log_of(cluster, search_id)
    assert [trial["trial"] for trial in sorted(table, key=lambda trial: trial["trial"])] == [0, 1]
    assert (cluster.runs / search_id / "best" / "model.safetensors").is_file()


def log_of(cluster: Cluster, run_id: str) -> str:
    return cluster.pod("cli-0").exec(["nightshift", "logs", run_id, "--tail", "40"]).stdout


def test_a_queued_run_survives_the_loss_of_its_ray_node(cluster, job_worker):
    queued = cluster.pod("cli-0").exec(["nightshift", "train", "/storage/digits", *TINY, "--epochs", "6"])
    run_id = queued.stdout.strip()
    cluster.wait_for_epoch(run_id, 2)
    cluster.pod("cpu-0").kill()
    cluster.start_ray("cpu-1")
    waited = cluster.pod("cli-0").exec(["nightshift", "wait", run_id, "--timeout", "20m"])

    assert waited.returncode == 0, log_of(cluster, run_id)
    assert cluster.file(run_id, "result.json")["metrics"]["n"] > 0
    epochs = [json.loads(line)["epoch"] for line in (cluster.runs / run_id / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(epochs)) == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_while_redis_restarts(cluster, job_worker):
    run_id = cluster.submit()

    cluster.pod("redis-0").kill()
    cluster.node.start("redis-0")
    state = cluster.ended(run_id, cluster.worker)
    wait_until(lambda: cluster.pod("cli-0").exec(["nightshift", "queue", "show"]).returncode == 0, "Redis answers")

    assert (state["state"], state["attempt"], state["losses"]) == ("succeeded", 1, 0), log_of(cluster, run_id)


def test_a_run_whose_node_is_drained_goes_on_elsewhere_in_the_same_attempt(cluster, job_worker):
    """An eviction is a SIGTERM and a grace period, in which Ray tells the training that its node goes."""
    run_id = cluster.submit(epochs=1000)  # more than it trains until its node is gone, on any machine
    drained, other = cluster.worker, cluster.idle_worker

    cluster.pod(drained).terminate(seconds=600)
    trained = len(cluster.epochs(run_id))
    cluster.start_ray(other)
    wait_until(lambda: cluster.keep_ray(other) and len(cluster.epochs(run_id)) > trained, "it goes on elsewhere")
    cancelled = cluster.pod("cli-0").exec(["nightshift", "cancel", run_id])
    state = cluster.ended(run_id, other)

    assert cancelled.returncode == 0, cancelled.stderr
    assert (state["state"], state["attempt"], state["losses"]) == ("cancelled", 1, 0), log_of(cluster, run_id)
    assert cluster.epochs(run_id) == list(range(1, len(cluster.epochs(run_id)) + 1))


def test_a_run_whose_storage_goes_away_until_its_attempt_has_ended_goes_on(cluster, job_worker):
    run_id = cluster.submit()
    worker, watcher = cluster.worker, cluster.pod("job-worker-0")
    mounted = [watcher, *(cluster.pod(name) for name in ("head-0", worker, "cli-0"))]

    for pod in mounted:
        pod.unmount("storage")
    told = cluster.pod("cli-0").exec(["nightshift", "list"])
    wait_until(lambda: f"{run_id} is finalized later" in watcher.log, "its trainer has given up")
    for pod in mounted:
        pod.mount("storage")
    state = cluster.ended(run_id, worker)

    assert (told.returncode, told.stdout) == (1, "")
    assert "is not the storage of this queue" in told.stderr
    assert (state["state"], state["attempt"], state["losses"]) == ("succeeded", 2, 1), log_of(cluster, run_id)
    assert cluster.epochs(run_id) == [1, 2, 3]
    assert "the storage /storage cannot be read: /storage/runs does not exist" in watcher.log
    assert "was deleted" not in watcher.log


def test_a_run_is_tried_again_after_the_head_of_the_permanent_cluster_was_lost(cluster, job_worker):
    run_id = cluster.submit()
    worker = cluster.worker  # it ends when it does not find its head

    cluster.pod("head-0").kill()
    for service in ("ray-head-svc", head_service(cluster.ray)):
        cluster.node.move_service(service, "head-1")
    cluster.start_ray("head-1")
    state = cluster.ended(run_id, "head-1", worker)

    assert (state["state"], state["attempt"], state["losses"]) == ("succeeded", 2, 1), log_of(cluster, run_id)
    assert cluster.epochs(run_id) == [1, 2, 3]


def test_a_job_worker_becomes_ready_serves_metrics_and_stops_on_sigterm(cluster, job_worker):
    job_worker = cluster.pod("job-worker-0")  # which may have been restarted
    port = job_worker.container["ports"][0]["containerPort"]
    ready = job_worker.exec(job_worker.container["readinessProbe"]["exec"]["command"])
    scraped = job_worker.exec(["python", "-c", STATUS, f"http://127.0.0.1:{port}/metrics"])

    assert (ready.returncode, scraped.stdout) == (0, "200\n"), ready.stdout + ready.stderr
    assert job_worker.terminate(seconds=job_worker.pod.spec["terminationGracePeriodSeconds"]) == 0


def test_a_rendered_run_succeeds_without_a_queue(cluster):
    manifests = list(yaml.safe_load_all(cluster.pod("cli-0").exec(["nightshift", *RENDER]).stdout))
    (job,) = manifests
    run_id = job["metadata"]["name"]
    wish = cluster.runs.parent / "wish"  # stands for the head's downwardAPI volume, which is mounted at /etc/nightshift
    wish.mkdir()
    for name, text in files_of(manifests).items():
        (wish / name).write_text(text)
    entry = job["spec"]["entrypoint"].replace("/etc/nightshift", "/storage/wish").split()

    # As KubeRay's submitter does, from the submitter's pod, with the token that KubeRay passes to it.
    submit = ["ray", "job", "submit", "--address", "http://ray-head-svc:8265", "--submission-id", run_id, "--", *entry]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
    done = cluster.node.start("submitter-0", ["sleep", "infinity"]).exec(submit, **token)

    assert done.returncode == 0, done.stdout
    assert f"{run_id} succeeded" in done.stdout
    shown = json.loads(cluster.pod("cli-0").exec(["nightshift", "show", run_id, "--json"]).stdout)
    assert shown["state"] == "succeeded"
    assert shown["result"]["metrics"]["n"] > 0
