"""A RayJob of `nightshift k8s render --head-fault-tolerance` whose head is lost and replaced, on pods of this machine.

KubeRay's part is done by `k8s_raynode`: its environment for the head, and a new pod with a new address.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from jobs.cli.main import cli
from tests.k8s_manifests import Manifest, pods, rendered
from tests.k8s_namespaces import needs_pods, secrets_made, wait_until
from tests.k8s_raynode import HEALTH, head_service, ray_command, ray_environment
from tests.k8s_sandbox import Node
from tests.test_k8s_cluster import FEW_DIGITS, RENDER, STATUS
from tests.test_k8s_pods import open_folder

pytestmark = [needs_pods, pytest.mark.slow, pytest.mark.timeout(1800)]
PLAN = {
    "redis-0": "redis",
    "head-0": "ray-head",
    "head-1": "ray-head",
    "worker-0": "ray-worker",
    "cli-0": "cli",
    "submitter-0": "job-submitter",
}
LONG = ["--workers", "2", "--epochs", "6", "--retries", "0", "--head-fault-tolerance"]


@pytest.fixture
def job() -> Manifest:
    """The rendered RayJob."""
    found: Manifest = yaml.safe_load(CliRunner().invoke(cli, [*RENDER, *LONG]).stdout)
    return found


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory, job: Manifest) -> Iterator[Node]:
    """Redis and the pod `cli`, with a packed data set on the storage."""
    manifests = rendered("kind")
    parts = {pod.labels["app.kubernetes.io/component"]: pod for pod in [*pods(manifests), *pods([job])]}
    plan = {name: parts[part] for name, part in PLAN.items()}
    services = {"redis": "redis-0", head_service(cluster_of(job)): "head-0", "ray-head-svc": "head-0"}
    with Node(open_folder(tmp_path_factory), manifests, secrets_made(), plan, services) as found:
        found.start("redis-0")
        here = found.start("cli-0")
        pack = ["shards", "pack", "/tmp/digits", "/storage/digits", "--image-size", "0", "--allow-leakage"]
        assert here.exec(["python", "-c", FEW_DIGITS]).returncode == 0
        assert here.exec(["nightshift", *pack, "--shard-size", "16KB"]).returncode == 0
        yield found


def cluster_of(job: Manifest) -> Manifest:
    """Return the RayCluster that KubeRay makes of a RayJob."""
    return {"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]}


def test_a_run_goes_on_in_the_same_attempt_while_its_head_is_replaced(node, job):
    run_id, spec, token = job["metadata"]["name"], job["spec"], node.secrets["ray-token"]["auth_token"]
    first, _ = start_ray(node, job, "head-0"), start_ray(node, job, "worker-0")
    submitter = node.start("submitter-0", ["sleep", "infinity"])
    ask = ["--address", "http://ray-head-svc:8265"]
    signed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    order = ["--no-wait", "--submission-id", run_id, "--entrypoint-resources", spec["entrypointResources"]]

    submitted = submitter.exec(["ray", "job", "submit", *ask, *order, "--", *spec["entrypoint"].split()], **signed)
    wait_until(lambda: file_of(node, run_id, "progress.json").get("epoch", 0) >= 2, "the run is in its second epoch")
    first.kill()
    for service in ("ray-head-svc", head_service(cluster_of(job))):
        node.move_service(service, "head-1")
    start_ray(node, job, "head-1")
    followed = submitter.exec(["ray", "job", "logs", *ask, "--follow", run_id], **signed)
    status = submitter.exec(["ray", "job", "status", *ask, run_id], **signed)

    assert submitted.returncode == 0, submitted.stdout
    assert f"{run_id} succeeded" in followed.stdout, followed.stdout + followed.stderr
    assert "succeeded" in status.stdout, status.stdout
    state = file_of(node, run_id, "state.json")
    assert (state["state"], state["attempt"], state["losses"]) == ("succeeded", 1, 0)
    lines = (node.folder / "claims" / "storage" / "runs" / run_id / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]


def start_ray(node: Node, job: Manifest, name: str) -> Any:
    """Start a Ray pod as KubeRay does, again if it ends, and wait until its probe succeeds."""
    pod, cluster = node.plan[name], cluster_of(job)
    environment = ray_environment(cluster, pod, node.secrets["ray-token"]["auth_token"], node.secrets)
    begun = []

    def healthy() -> bool:
        if not begun or begun[-1].holder.poll() is not None:
            begun.append(node.start(name, ray_command(cluster, pod), **environment))
        return bool(begun[-1].exec(["python", "-c", STATUS, HEALTH]).stdout == "200\n")

    wait_until(healthy, f"{name} is healthy")
    return begun[-1]


def file_of(node: Node, run_id: str, name: str) -> dict[str, Any]:
    """Return a JSON file of a run's folder, an empty dict while it does not exist."""
    file = node.folder / "claims" / "storage" / "runs" / run_id / name
    return dict(json.loads(file.read_text())) if file.exists() else {}
