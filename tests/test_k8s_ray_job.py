import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cluster.run_paths import RunPaths
from jobs.cli.main import cli
from jobs.runs.state import read_state
from tests.k8s_kuberay import complaints_of_kuberay
from tests.k8s_manifests import Manifest, Pod, needs_kubectl, of_kind, one, pods, rendered
from tests.k8s_policies import (
    POLICIES,
    only_the_autoscaler_holds_a_service_account_token,
    the_head_only_coordinates,
)
from tests.k8s_scheduling import SCHEDULING
from tests.k8s_schemas import complaints_of_schema, needs_kuberay_schemas
from tests.k8s_wiring import may_connect
from trainer.specs import SearchSpec, build

RENDER = ["k8s", "render", "train", "/storage/shards/chest", "--image", "nightshift:0.1.0", "--workers", "2"]


def render(*more: str) -> Result:
    return CliRunner().invoke(cli, [*RENDER, *more])


def manifests_of(*more: str) -> list[Manifest]:
    return list(yaml.safe_load_all(render(*more).stdout))


@needs_kuberay_schemas
@pytest.mark.parametrize(
    "more", [[], ["--queue", "team", "--gpus-per-worker", "0"], ["--keep", "2h", "--retries", "0"]]
)
def test_a_rendered_run_satisfies_the_schemas_and_kuberays_rules(more):
    manifests = manifests_of(*more)

    assert [text for manifest in manifests for text in complaints_of_schema(manifest)] == []
    assert complaints_of_kuberay(manifests) == []
    assert [manifest["kind"] for manifest in manifests] == ["ConfigMap", "RayJob"]


@needs_kubectl
def test_a_rendered_run_satisfies_the_policies_together_with_the_installed_manifests():
    beside = rendered("gpu-small")
    not_for_it = (the_head_only_coordinates, only_the_autoscaler_holds_a_service_account_token)
    policies = [policy for policy in (*POLICIES, *SCHEDULING) if policy not in not_for_it]

    manifests = [*beside, *manifests_of()]

    assert [f"{policy.__name__}: {text}" for policy in policies for text in policy(manifests)] == []


@needs_kubectl
def test_only_the_submitter_and_its_own_workers_reach_the_head_of_a_rendered_run():
    manifests = [*rendered("gpu-small"), *manifests_of()]
    everybody = {pod.name: pod for pod in pods(manifests)}
    run = one(manifests, "RayJob", of_kind(manifests, "RayJob")[0]["metadata"]["name"])["metadata"]["name"]
    head, worker, submitter = (everybody[f"{run}-{part}"] for part in ("head", "workers", "submitter"))

    assert may_connect(manifests, submitter, head, 8265)
    assert may_connect(manifests, worker, head, 6379)
    assert not may_connect(manifests, submitter, worker, 8265)
    assert not may_connect(manifests, submitter, everybody["redis"], 6379)
    assert not may_connect(manifests, head, everybody["redis"], 6379)


@needs_kubectl
def test_the_pods_of_a_rendered_run_equal_those_of_the_permanent_cluster():
    standing = {pod.labels["app.kubernetes.io/component"]: pod for pod in pods(rendered("gpu-small")) if pod.is_ray}
    alone = {pod.labels["app.kubernetes.io/component"]: pod for pod in pods(manifests_of()) if pod.is_ray}

    assert alone.keys() == standing.keys()
    for part, pod in alone.items():
        assert hull(pod) == hull(standing[part])


@needs_kubectl
def test_a_rendered_run_reads_a_bucket_with_the_secret_of_the_permanent_cluster_if_there_is_one():
    standing = secrets_read(rendered("gpu-small", ["s3"]))
    alone = secrets_read(manifests_of())

    assert [name for _, name, _ in standing] == ["s3", "s3"]
    assert alone == [(part, name, True) for part, name, _ in standing]


def secrets_read(manifests: list[Manifest]) -> list[tuple[str, str, bool]]:
    """Part, name and `optional` of each Secret that Ray's containers use as environment."""
    return [
        (pod.labels["ray.io/node-type"], source["secretRef"]["name"], source["secretRef"].get("optional", False))
        for pod in pods(manifests)
        if pod.is_ray
        for source in pod.spec["containers"][0].get("envFrom", [])
        if "secretRef" in source
    ]


def hull(pod: Pod) -> Manifest:
    """The parts of a pod except its resources: user, termination grace period, mounts, ports."""
    first = pod.spec["containers"][0]
    mounts = [mount for mount in first["volumeMounts"] if mount["name"] != "spec"]
    environment = {v["name"]: v["value"] for v in first["env"] if v["name"].startswith("RAY_")}
    kept = ("securityContext", "terminationGracePeriodSeconds", "enableServiceLinks", "tolerations")
    return {
        **{name: pod.spec.get(name) for name in kept},
        "container": [first["securityContext"], first.get("ports"), mounts, environment],
    }


def test_the_spec_is_complete_and_requests_a_gpu_that_the_submitter_cannot_see():
    spec = json.loads(manifests_of("--lr", "1e-3", "--epochs", "3")[0]["data"]["spec.json"])

    assert spec["shards"] == "/storage/shards/chest"
    assert (spec["lr"], spec["epochs"], spec["workers"], spec["gpus_per_worker"]) == (1e-3, 3, 2, 1)


def test_workers_have_one_gpu_each_unless_zero_are_requested():
    with_gpu = resources_of_worker(manifests_of())
    with_slice = resources_of_worker(manifests_of("--gpu-resource", "nvidia.com/mig-1g.10gb"))
    without = resources_of_worker(manifests_of("--gpus-per-worker", "0"))

    assert with_gpu["requests"]["nvidia.com/gpu"] == with_gpu["limits"]["nvidia.com/gpu"] == 1
    assert with_slice["limits"]["nvidia.com/mig-1g.10gb"] == 1
    assert not any("nvidia" in name for name in without["limits"])


def test_any_spec_can_be_rendered_and_a_search_has_pods_for_all_trials_at_once(tmp_path):
    file = tmp_path / "spec.json"
    file.write_text(
        json.dumps(build(SearchSpec, shards="s3://bucket/chest", trials=8, workers=2, concurrency=3).to_json())
    )

    result = CliRunner().invoke(cli, ["k8s", "render", "spec", str(file), "--image", "nightshift:0.1.0"])

    config, job = yaml.safe_load_all(result.stdout)
    assert json.loads(config["data"]["spec.json"])["kind"] == "search"
    assert job["metadata"]["name"].startswith("search-")
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 6


def resources_of_worker(manifests: list[Manifest]) -> Manifest:
    worker = next(pod for pod in pods(manifests) if pod.labels.get("ray.io/node-type") == "worker")
    found: Manifest = worker.spec["containers"][0]["resources"]
    return found


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--batch-size", "31"], "batch_size 31 does not split evenly over 2 workers"),
        (["--image", "x y"], "'x y' is not a valid image; write registry/name:tag in lower case"),
        (["--queue", "a: b"], "'a: b' is not a valid queue; write small letters, digits and -"),
        (["--namespace", "No"], "'No' is not a valid namespace; write small letters, digits and -"),
        (["--memory", "much"], "'much' is not a valid amount of memory; write 16Gi"),
        (["--weights", "b0.pth"], "weights b0.pth is not a path of the cluster; write it as /storage/... or as a URL"),
        (["--name", "a b"], "name 'a b' is not valid"),
    ],
)
def test_a_spec_that_can_never_work_prints_no_manifest(options, line):
    result = render(*options)

    assert line in str(result.exception)
    assert result.stdout == ""


def test_a_local_shards_folder_is_refused():
    result = CliRunner().invoke(cli, ["k8s", "render", "train", "shards", "--image", "nightshift:0.1.0"])

    assert str(result.exception).startswith("shards shards is not a path of the cluster")


@pytest.fixture
def rendered_spec(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A rendered run's id and the folder that its ConfigMap would be mounted at."""
    config = manifests_of("--gpus-per-worker", "0", "--retries", "1")[0]
    folder = tmp_path / "spec"
    folder.mkdir()
    for name, text in config["data"].items():
        (folder / name).write_text(text)
    yield config["metadata"]["name"], folder
    shutil.rmtree(folder)


def test_the_command_in_the_pod_creates_the_run_folder_and_reports_how_the_run_ended(rendered_spec, tmp_path):
    run_id, folder = rendered_spec
    environment = {"NIGHTSHIFT_STORAGE": str(tmp_path / "storage"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-m", "jobs", "k8s", "run", run_id, "--spec-folder", str(folder)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    state = read_state(RunPaths.of(tmp_path / "storage", run_id))
    assert done.returncode == 1
    assert state.state == "failed"
    assert state.attempt == 1
    assert "/storage/shards/chest" in str(state.why)
    assert f"{run_id} failed" in done.stderr
