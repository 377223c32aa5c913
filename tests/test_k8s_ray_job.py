import json
import re
import shlex
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
from jobs.kubernetes.pod_size import RequestedSize, pod_size
from jobs.runs.state import read_state
from tests.k8s_kuberay import complaints_of_kuberay, complaints_of_kueue
from tests.k8s_manifests import Manifest, Pod, needs_kubectl, of_kind, one, pods, rendered
from tests.k8s_policies import (
    POLICIES,
    only_the_autoscaler_holds_a_service_account_token,
    the_head_only_coordinates,
    the_object_store_fits_into_shared_memory,
)
from tests.k8s_quantities import number
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
    "more",
    [
        [],
        ["--queue", "team", "--queue-priority", "low", "--gpus-per-worker", "0"],
        ["--keep", "2h", "--retries", "0", "--start-within", "0.5s"],
        ["--head-fault-tolerance", "--queue", "team"],
        [
            "--openshift",
            "--priority-class",
            "low",
            "--node-label",
            "gpu=a100",
            "--gpus-per-pod",
            "2",
            "--memory",
            "3Gi",
        ],
    ],
)
def test_a_rendered_run_satisfies_the_schemas_and_kuberays_rules(more):
    manifests = manifests_of(*more)

    assert [text for manifest in manifests for text in complaints_of_schema(manifest)] == []
    assert complaints_of_kuberay(manifests) == complaints_of_kueue(manifests) == []
    assert [manifest["kind"] for manifest in manifests] == ["RayJob"]


@needs_kubectl
def test_a_rendered_run_satisfies_the_policies_together_with_the_installed_manifests():
    beside = rendered("gpu-small")
    not_for_it = (the_head_only_coordinates, only_the_autoscaler_holds_a_service_account_token)
    policies = [policy for policy in (*POLICIES, *SCHEDULING) if policy not in not_for_it]

    manifests = [*beside, *manifests_of(), *manifests_of("--head-fault-tolerance")]

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


@needs_kubectl
def test_a_rendered_run_reads_the_settings_of_the_permanent_cluster():
    config = one(rendered("gpu-small"), "ConfigMap", "nightshift-settings")
    sources = [pod.spec["containers"][0]["envFrom"] for pod in pods(manifests_of()) if pod.is_ray]

    assert len(sources) == 2
    assert all({"configMapRef": {"name": "nightshift-settings", "optional": True}} in source for source in sources)
    assert config["metadata"]["name"] == "nightshift-settings"


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


def files_of(manifests: list[Manifest]) -> dict[str, str]:
    """The files that the downwardAPI volume of the head has, by name."""
    return files_in(manifests[0]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"])


def files_in(template: Manifest) -> dict[str, str]:
    """The files that the downwardAPI volume of a pod has, by name."""
    items = next(v["downwardAPI"]["items"] for v in template["spec"]["volumes"] if v["name"] == "spec")
    keys = {
        item["path"]: re.fullmatch(r"metadata.annotations\['(.+)'\]", item["fieldRef"]["fieldPath"]) for item in items
    }
    return {path: template["metadata"]["annotations"][key[1]] for path, key in keys.items() if key}


def test_with_head_fault_tolerance_the_run_is_driven_from_a_worker_pod_and_the_state_of_the_head_is_in_redis():
    ordinary, tolerant = manifests_of(), manifests_of("--head-fault-tolerance")

    cluster = tolerant[0]["spec"]["rayClusterSpec"]
    [worker] = cluster["workerGroupSpecs"]
    resource = json.loads(tolerant[0]["spec"]["entrypointResources"])
    assert 0 < resource["nightshift-driver"] < 1
    # The shell of the pod removes one level of quotes.
    assert json.loads(shlex.split(worker["rayStartParams"]["resources"])[0]) == {"nightshift-driver": 1}
    assert "resources" not in cluster["headGroupSpec"]["rayStartParams"]
    assert files_in(worker["template"]).keys() == files_of(ordinary).keys()
    assert "spec" not in {volume["name"] for volume in cluster["headGroupSpec"]["template"]["spec"]["volumes"]}
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis://redis:6379"
    assert "entrypointResources" not in ordinary[0]["spec"]
    assert "gcsFaultToleranceOptions" not in ordinary[0]["spec"]["rayClusterSpec"]


@needs_kubectl
def test_only_a_head_that_keeps_its_state_in_redis_reaches_it():
    manifests = [*rendered("gpu-small"), *manifests_of("--head-fault-tolerance")]
    everybody = {pod.name: pod for pod in pods(manifests)}
    run = of_kind(manifests, "RayJob")[0]["metadata"]["name"]

    assert may_connect(manifests, everybody[f"{run}-head"], everybody["redis"], 6379)
    assert not may_connect(manifests, everybody[f"{run}-workers"], everybody["redis"], 6379)
    assert not may_connect(manifests, everybody["ray-head"], everybody["redis"], 6379)


def test_the_spec_is_complete_and_requests_a_gpu_that_the_submitter_cannot_see():
    spec = json.loads(files_of(manifests_of("--lr", "1e-3", "--epochs", "3"))["spec.json"])

    assert spec["shards"] == "/storage/shards/chest"
    assert (spec["lr"], spec["epochs"], spec["workers"], spec["gpus_per_worker"]) == (1e-3, 3, 2, 1)


def test_the_workers_of_a_run_share_a_pod_unless_fewer_gpus_per_pod_or_zero_are_requested():
    together = resources_of_worker(manifests_of())
    apart = resources_of_worker(manifests_of("--gpus-per-pod", "1", "--gpu-resource", "nvidia.com/mig-1g.10gb"))
    without = resources_of_worker(manifests_of("--gpus-per-worker", "0"))

    assert together["requests"]["nvidia.com/gpu"] == together["limits"]["nvidia.com/gpu"] == 2
    assert (together["limits"]["cpu"], together["limits"]["memory"]) == ("8", "32768Mi")
    assert apart["limits"]["nvidia.com/mig-1g.10gb"] == 1
    assert not any("nvidia" in name for name in without["limits"])


@pytest.mark.parametrize(
    ("options", "pods_and_gpus"),
    [
        ([], (1, 2)),
        (["--workers", "8"], (1, 8)),
        (["--workers", "12"], (2, 6)),
        (["--workers", "16"], (2, 8)),
        (["--workers", "24"], (3, 8)),
        (["--workers", "4", "--replicas", "1"], (1, 4)),
        (["--workers", "4", "--replicas", "4"], (4, 1)),
        (["--workers", "4", "--gpus-per-pod", "2"], (2, 2)),
        (["--workers", "6", "--gpus-per-pod", "4"], (2, 4)),
        (["--workers", "4", "--gpus-per-worker", "0"], (4, 0)),
        (["--workers", "4", "--gpus-per-worker", "0", "--replicas", "1"], (1, 0)),
    ],
)
def test_the_pods_have_room_for_all_workers(options, pods_and_gpus):
    manifests = manifests_of("--batch-size", "96", *options)
    group = manifests[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    gpus = int(group["rayStartParams"].get("num-gpus", 0))

    assert (group["replicas"], gpus) == pods_and_gpus
    assert resources_of_worker(manifests)["limits"].get("nvidia.com/gpu", 0) == gpus
    environment = group["template"]["spec"]["containers"][0]["env"]
    assert {"name": "NIGHTSHIFT_CLUSTER_GPUS", "value": str(group["replicas"] * gpus)} in environment


@pytest.mark.parametrize("memory", ["2Gi", "3000Mi", "64Gi"])
def test_shared_memory_is_half_of_the_memory_and_holds_the_object_store(memory):
    manifests = manifests_of("--memory", memory)
    worker = next(pod for pod in pods(manifests) if pod.labels.get("ray.io/node-type") == "worker")
    shm = next(v["emptyDir"] for v in worker.spec["volumes"] if v["name"] == "shm")

    assert number(shm["sizeLimit"]) == number(resources_of_worker(manifests)["limits"]["memory"]) / 2
    assert list(the_object_store_fits_into_shared_memory(manifests)) == []


def test_everything_of_a_rendered_run_is_deleted_with_it_and_a_run_that_cannot_start_ends():
    alone, queued = manifests_of()[0]["spec"], manifests_of("--queue", "team", "--start-within", "30m")[0]["spec"]

    rules = {(rule["policy"], *rule["condition"].values()) for rule in alone["deletionStrategy"]["deletionRules"]}
    assert {("DeleteCluster", "SUCCEEDED", 600), ("DeleteSelf", "SUCCEEDED", 87000)} <= rules
    assert {("DeleteCluster", "Failed", 600), ("DeleteSelf", "Failed", 87000)} <= rules
    assert (queued["shutdownAfterJobFinishes"], queued["ttlSecondsAfterFinished"]) == (True, 600)
    assert (alone["preRunningDeadlineSeconds"], queued["preRunningDeadlineSeconds"]) == (3600, 1800)


def test_priorities_and_node_labels_reach_the_pods_and_kueue():
    options = ["--priority-class", "low", "--node-label", "gpu=a100", "--node-label", "example.org/on=true"]
    manifests = manifests_of("--queue", "team", "--queue-priority", "high", *options)

    everybody = pods(manifests)
    selectors = {pod.name: pod.spec.get("nodeSelector") for pod in everybody if pod.spec.get("nodeSelector")}
    assert manifests[0]["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert [pod.spec["priorityClassName"] for pod in everybody] == ["low"] * 3
    assert list(selectors.values()) == [{"gpu": "a100", "example.org/on": "true"}]
    assert all("-workers" in name for name in selectors)


def test_node_labels_may_be_as_long_as_kubernetes_allows():
    prefix = "p" * 100 + "." + "q" * 152  # 253 characters, the most
    manifests = manifests_of("--node-label", f"{prefix}/{'k' * 63}={'v' * 63}", "--node-label", "empty=")
    worker = next(pod for pod in pods(manifests) if pod.labels.get("ray.io/node-type") == "worker")

    assert worker.spec["nodeSelector"] == {f"{prefix}/{'k' * 63}": "v" * 63, "empty": ""}
    assert "is not a valid label" in str(render("--node-label", f"p{prefix}/key=value").exception)


def test_two_pods_hold_9_to_16_workers_with_at_most_one_gpu_too_many():
    sizes = [pod_size(RequestedSize(), workers=workers, trials=1, with_gpus=True) for workers in range(9, 17)]

    assert [size.pods for size in sizes] == [2] * 8
    assert [size.gpus for size in sizes] == [5, 5, 6, 6, 7, 7, 8, 8]


def test_names_that_look_like_numbers_stay_texts():
    job = manifests_of("--namespace", "123", "--queue", "true", "--queue-priority", "1e3", "--priority-class", "0")[0]

    assert (job["metadata"]["namespace"], job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]) == ("123", "true")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "1e3"
    assert [pod.spec["priorityClassName"] for pod in pods([job])] == ["0"] * 3


def test_any_spec_can_be_rendered_and_a_search_has_pods_for_all_trials_at_once(tmp_path):
    file = tmp_path / "spec.json"
    file.write_text(
        json.dumps(build(SearchSpec, shards="s3://bucket/chest", trials=8, workers=2, concurrency=3).to_json())
    )

    result = CliRunner().invoke(cli, ["k8s", "render", "spec", str(file), "--image", "nightshift:0.1.0"])

    (job,) = yaml.safe_load_all(result.stdout)
    assert json.loads(files_of([job])["spec.json"])["kind"] == "search"
    assert job["metadata"]["name"].startswith("search-")
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3


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
        (["--memory", "1Gi"], "--memory 1Gi is too small for a Ray worker; use at least 2Gi"),
        (["--node-label", "a100"], "'a100' is not a valid label of a node; write KEY=VALUE"),
        (["--node-label", "a=b: c"], "'a=b: c' is not a valid label of a node; write KEY=VALUE"),
        (["--node-label", "größe=a100"], "'größe=a100' is not a valid label of a node; write KEY=VALUE"),
        (["--node-label", "gpu=٣"], "'gpu=٣' is not a valid label of a node; write KEY=VALUE"),
        (["--node-label", "gpu=" + "a" * 64], "is not a valid label of a node; write KEY=VALUE"),
        (["--node-label", "a..b/gpu=a100"], "'a..b/gpu=a100' is not a valid label of a node; write KEY=VALUE"),
        (
            ["--node-label", "gpu=a100", "--node-label", "zone=a", "--node-label", "gpu=h100"],
            "--node-label gpu is given 2 times; give it once",
        ),
        (["--gpu-resource", "-/gpu"], "'-/gpu' is not a valid resource name of a GPU; write nvidia.com/gpu"),
        (["--image", "registry/nächte:1"], "'registry/nächte:1' is not a valid image"),
        (["--priority-class", "a b"], "'a b' is not a valid priority class; write small letters, digits and -"),
        (["--queue-priority", "low"], "--queue-priority low has no effect without --queue; add --queue NAME"),
        (
            ["--workers", "4", "--replicas", "1", "--gpus-per-pod", "1"],
            "4 workers need 4 GPUs, and 1 pod of 1 GPU has 1; use --replicas 4 or --gpus-per-pod 4",
        ),
        (
            ["--workers", "16", "--replicas", "1"],
            "16 workers need 16 GPUs, and 1 pod of 8 GPUs has 8; use --replicas 2 or --gpus-per-pod 16",
        ),
        (
            ["--workers", "8", "--gpus-per-worker", "0", "--replicas", "3", "--cpus", "2"],
            "8 workers need 8 CPUs, and 3 pods of 2 CPUs have 6; use --replicas 4 or --cpus 3",
        ),
        (
            ["--gpus-per-worker", "0", "--gpus-per-pod", "2"],
            "--gpus-per-pod 2 does not go with --gpus-per-worker 0; remove one of them",
        ),
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
def rendered_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A rendered run's id and a folder with the files of its downwardAPI volume."""
    monkeypatch.setenv("NIGHTSHIFT_USER", "ada")
    labels = ["--tag", "chest", "--tag", "night", "--note", "first: 'try' \U0001fa7b"]
    manifests = manifests_of("--gpus-per-worker", "0", "--retries", "1", *labels)
    folder = tmp_path / "spec"
    folder.mkdir()
    for name, text in files_of(manifests).items():
        (folder / name).write_text(text)
    yield manifests[0]["metadata"]["name"], folder
    shutil.rmtree(folder)


def test_the_command_in_the_pod_creates_the_run_folder_and_reports_how_the_run_ended(rendered_spec, tmp_path):
    run_id, folder = rendered_spec
    environment = {"NIGHTSHIFT_STORAGE": str(tmp_path / "storage"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-m", "jobs", "k8s", "run", run_id, "--spec-folder", str(folder)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip

    state = read_state(RunPaths.of(tmp_path / "storage", run_id))
    assert done.returncode == 1
    assert state.state == "failed"
    assert state.attempt == 1
    assert (state.owner, state.tags, state.note) == ("ada", ("chest", "night"), "first: 'try' \U0001fa7b")
    assert "/storage/shards/chest" in str(state.why)
    assert f"{run_id} failed" in done.stderr
