"""A RayJob of `nightshift k8s render --head-fault-tolerance` whose head is lost and replaced, on pods of this machine.

KubeRay's part is done by `k8s_raynode`: its environment for the head, and a new pod with a new address.
"""

import json
from collections.abc import Iterator

import pytest
import yaml
from click.testing import CliRunner

from jobs.cli.main import cli
from tests.k8s_manifests import Manifest, pods, rendered
from tests.k8s_namespaces import needs_pods, secrets_made
from tests.k8s_raynode import head_service
from tests.k8s_sandbox import Node
from tests.test_k8s_cluster import RENDER, Cluster, pack_few_digits
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
def cluster(tmp_path_factory: pytest.TempPathFactory, job: Manifest) -> Iterator[Cluster]:
    """Redis, the RayCluster of the RayJob, and the pod `cli`, with a packed data set on the storage."""
    ray = {"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]}
    manifests = rendered("kind")
    parts = {pod.labels["app.kubernetes.io/component"]: pod for pod in [*pods(manifests), *pods([job])]}
    plan = {name: parts[part] for name, part in PLAN.items()}
    services = {"redis": "redis-0", head_service(ray): "head-0", "ray-head-svc": "head-0"}
    with Node(open_folder(tmp_path_factory), manifests, secrets_made(), plan, services) as node:
        node.start("redis-0")
        pack_few_digits(node.start("cli-0"))
        yield Cluster(node, ray)


def test_a_run_goes_on_in_the_same_attempt_while_its_head_is_replaced(cluster, job):
    run_id, spec = job["metadata"]["name"], job["spec"]
    first, _ = cluster.start_ray("head-0"), cluster.start_ray("worker-0")
    submitter = cluster.node.start("submitter-0", ["sleep", "infinity"])
    ask = ["--address", "http://ray-head-svc:8265"]
    signed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
    order = ["--no-wait", "--submission-id", run_id, "--entrypoint-resources", spec["entrypointResources"]]

    submitted = submitter.exec(["ray", "job", "submit", *ask, *order, "--", *spec["entrypoint"].split()], **signed)
    cluster.wait_for_epoch(run_id, 2)
    first.kill()
    for service in ("ray-head-svc", head_service(cluster.ray)):
        cluster.node.move_service(service, "head-1")
    cluster.start_ray("head-1")
    followed = submitter.exec(["ray", "job", "logs", *ask, "--follow", run_id], **signed)
    status = submitter.exec(["ray", "job", "status", *ask, run_id], **signed)

    assert submitted.returncode == 0, submitted.stdout
    assert f"{run_id} succeeded" in followed.stdout, followed.stdout + followed.stderr
    assert "succeeded" in status.stdout, status.stdout
    state = cluster.file(run_id, "state.json")
    assert (state["state"], state["attempt"], state["losses"]) == ("succeeded", 1, 0)
    lines = (cluster.runs / run_id / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
