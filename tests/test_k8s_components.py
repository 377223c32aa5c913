"""What each component is for: RayJobs alone, OpenShift, quotas, and an overlay of a site over ours."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from jobs.cli.main import cli
from tests.conftest import Say
from tests.k8s_kuberay import complaints_of_kuberay, complaints_of_kueue
from tests.k8s_manifests import COMPONENTS, K8S, Manifest, needs_kubectl, of_kind, one, pods, ray_clusters, rendered
from tests.k8s_policies import (
    POLICIES,
    environment_is_what_settings_reads,
    only_the_autoscaler_holds_a_service_account_token,
    the_head_only_coordinates,
)
from tests.k8s_quantities import number
from tests.k8s_scheduling import SCHEDULING
from tests.k8s_wiring import WIRING, addresses_lead_to_the_services

pytestmark = needs_kubectl
IDS = ("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups")


def rayjob(*options: str) -> list[Manifest]:
    words = ["k8s", "render", "train", "/storage/shards/chest", "--image", "nightshift:0.1.0", *options]
    return list(yaml.safe_load_all(CliRunner().invoke(cli, words, catch_exceptions=False).stdout))


def requests(manifests: list[Manifest]) -> dict[str, float]:
    """What Kueue counts of the RayJobs: the requests of the head, of all workers and of the submitter."""
    total: dict[str, float] = {}
    for job in of_kind(manifests, "RayJob"):
        spec = job["spec"]["rayClusterSpec"]
        group = spec["workerGroupSpecs"][0]
        templates = [(spec["headGroupSpec"]["template"], 1), (job["spec"]["submitterPodTemplate"], 1)]
        for template, copies in [*templates, (group["template"], group["replicas"])]:
            for name, amount in template["spec"]["containers"][0]["resources"]["requests"].items():
                total[name] = total.get(name, 0) + copies * number(amount)
    return total


def quotas(manifests: list[Manifest]) -> dict[str, float]:
    group = one(manifests, "ClusterQueue", "nightshift")["spec"]["resourceGroups"][0]
    return {resource["name"]: number(resource["nominalQuota"]) for resource in group["flavors"][0]["resources"]}


@pytest.mark.parametrize(
    ("overlay", "components", "resource", "gpus"),
    [
        ("kind", (), "nvidia.com/gpu", 0),
        ("gpu-small", (), "nvidia.com/gpu", 4),
        ("gpu-small", ("mig",), "nvidia.com/mig-1g.10gb", 7),
        ("gpu-small", ("time-slicing",), "nvidia.com/gpu", 4),
        ("gpu-large", (), "nvidia.com/gpu", 32),
    ],
)
def test_kueue_admits_as_many_runs_with_one_gpu_as_the_nodes_have_gpus(overlay, components, resource, gpus):
    quota = quotas(rendered(overlay, (*components, "kueue")))

    each = requests(rayjob("--queue", "nightshift", "--gpu-resource", resource))

    assert {name: quota[name] for name in quota if "/" in name and quota[name]} == ({resource: gpus} if gpus else {})
    assert [name for name, amount in each.items() if gpus * amount > quota[name]] == []
    on_cpus = requests(rayjob("--queue", "nightshift", "--gpus-per-worker", "0"))
    assert [name for name, amount in on_cpus.items() if amount > quota[name]] == []


@pytest.mark.parametrize(
    ("overlay", "components", "gpus", "slices"),
    [
        ("kind", (), 0, 0),
        ("gpu-small", (), 4, 0),
        ("gpu-small", ("mig",), 0, 7),
        ("gpu-large", ("kueue",), 32, 0),
        ("gpu-small", ("rayjobs",), 4, 0),
    ],
)
def test_the_quota_of_the_namespace_is_the_gpus_of_its_nodes(overlay, components, gpus, slices):
    before_rayjobs = [name for name in components if name != "rayjobs"]
    listed = (*before_rayjobs, "quota", *(set(components) - set(before_rayjobs)))

    hard = one(rendered(overlay, listed), "ResourceQuota", "nightshift")["spec"]["hard"]

    assert hard == {"requests.nvidia.com/gpu": str(gpus), "requests.nvidia.com/mig-1g.10gb": str(slices)}


def test_the_permanent_cluster_fits_into_the_quota_of_its_namespace():
    manifests = rendered("gpu-large", ["quota"])
    hard = one(manifests, "ResourceQuota", "nightshift")["spec"]["hard"]

    group = one(manifests, "RayCluster", "ray")["spec"]["workerGroupSpecs"][0]
    each = group["template"]["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"]

    assert group["maxReplicas"] * number(each) == number(hard["requests.nvidia.com/gpu"])


def test_kueue_admits_a_run_on_all_gpus_of_the_small_node_in_one_pod_and_none_beside_it():
    quota = quotas(rendered("gpu-small", ["kueue"]))

    whole = rayjob("--queue", "nightshift", "--workers", "4")

    assert whole[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 1
    assert all(amount <= quota[name] for name, amount in requests(whole).items())
    assert requests([*whole, *rayjob("--queue", "nightshift")])["nvidia.com/gpu"] > quota["nvidia.com/gpu"]


@pytest.mark.parametrize("components", [("rayjobs",), ("keda", "kueue", "rayjobs", "openshift")])
def test_for_rayjobs_alone_no_pod_holds_gpus_and_a_rendered_run_satisfies_all_policies(components):
    standing = rendered("gpu-small", components)
    options = ["--queue", "nightshift"] if "kueue" in components else []
    not_for_it = (
        the_head_only_coordinates,  # of the permanent cluster
        environment_is_what_settings_reads,
        only_the_autoscaler_holds_a_service_account_token,
        addresses_lead_to_the_services,
    )

    manifests = [*standing, *rayjob(*options, *(["--openshift"] if "openshift" in components else []))]

    assert [pod.name for pod in pods(standing)] == ["cli", "metrics", "redis", "reconcile"]
    assert one(standing, "ConfigMap", "nightshift")["data"]["NIGHTSHIFT_CLUSTER_GPUS"] == "0"
    policies = [policy for policy in (*POLICIES, *WIRING, *SCHEDULING) if policy not in not_for_it]
    found = [f"{policy.__name__}: {text}" for policy in policies for text in policy(manifests)]
    assert found == []
    assert complaints_of_kuberay(manifests) == complaints_of_kueue(manifests) == []


@pytest.mark.parametrize("overlay", ["gpu-small", "gpu-large"])
def test_on_openshift_no_pod_states_a_user_or_a_group(overlay):
    manifests = [*rendered(overlay, (*COMPONENTS, "openshift")), *rayjob("--openshift")]
    contexts = [pod.spec["securityContext"] for pod in pods(manifests)]
    contexts += [container.get("securityContext", {}) for pod in pods(manifests) for container in pod.containers]

    stated = [name for context in contexts for name in IDS if name in context]

    assert len(contexts) > 20
    assert stated == []
    assert all(pod.spec["securityContext"]["runAsNonRoot"] for pod in pods(manifests))


def test_rays_autoscaler_counts_the_slices_of_a_rendered_run():
    manifests = rayjob("--workers", "1", "--gpu-resource", "nvidia.com/mig-1g.10gb", "--replicas", "7")

    types = _derive_autoscaling_config_from_ray_cr(ray_clusters(manifests)[0])["available_node_types"]

    assert types["workers"]["resources"]["GPU"] * types["workers"]["max_workers"] == 7


def own_overlay(folder: Path, text: str) -> list[Manifest]:
    """Render an overlay of a site that stands beside a copy of ours."""
    shutil.copytree(K8S, folder / "tree", ignore=shutil.ignore_patterns("*.pth"))
    (folder / "site").mkdir()
    (folder / "site" / "kustomization.yaml").write_text(text)
    done = subprocess.run(["kubectl", "kustomize", folder / "site"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def test_an_overlay_of_a_site_keeps_the_image_tags_and_moves_everything_into_its_namespace(tmp_path):
    listed = "".join(f"  - ../tree/components/{name}\n" for name in (*COMPONENTS[:-1], "mig", "kueue"))
    text = f"kind: Kustomization\nnamespace: team-a\nresources: [../tree/overlays/gpu-small]\ncomponents:\n{listed}"

    manifests = own_overlay(tmp_path, text)

    policies = (*POLICIES, *WIRING, *SCHEDULING)
    assert [f"{policy.__name__}: {found}" for policy in policies for found in policy(manifests)] == []
    cluster_wide = ("Namespace", "ClusterQueue", "ResourceFlavor")
    assert {m["metadata"].get("namespace") for m in manifests if m["kind"] not in cluster_wide} == {"team-a"}
    assert of_kind(manifests, "Namespace")[0]["metadata"]["name"] == "team-a"
    for manifest in manifests:
        assert "nightshift.svc" not in str(manifest), manifest["metadata"]["name"]
        assert "kubernetes.io/metadata.name: nightshift" not in str(manifest)
    selector = one(manifests, "ClusterQueue", "nightshift")["spec"]["namespaceSelector"]["matchLabels"]
    assert selector.items() <= of_kind(manifests, "Namespace")[0]["metadata"]["labels"].items()


def test_the_example_overlay_sets_what_differs_between_sites_in_one_file():
    manifests = rendered("example")
    images = {container["image"] for pod in pods(manifests) for container in pod.containers}
    secrets = [m["imagePullSecrets"] for m in of_kind(manifests, "ServiceAccount")]
    secrets += [pod.spec["imagePullSecrets"] for pod in pods(manifests) if "imagePullSecrets" in pod.spec]

    assert {image.split("/")[0] for image in images} == {"registry.example.org"}
    assert secrets == [[{"name": "team-a-registry"}]] * 2
    claim = one(manifests, "PersistentVolumeClaim", "storage")["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("nfs", "2Ti")
    assert one(manifests, "ConfigMap", "nightshift-settings")["data"]["NIGHTSHIFT_CACHE_GB"] == "200"


def test_kedas_scaler_reads_the_address_of_redis_from_its_secret():
    manifests = rendered("gpu-small", ["keda"])
    parameters = one(manifests, "TriggerAuthentication", "redis")["spec"]["secretTargetRef"]

    assert {"parameter": "address", "name": "redis", "key": "scaler-address"} in parameters
    for trigger in one(manifests, "ScaledJob", "job-worker")["spec"]["triggers"]:
        assert "address" not in trigger["metadata"]
        assert trigger["authenticationRef"]["name"] == "redis"


def test_the_small_node_is_one_pod_whose_gpus_communicate_over_nvlink():
    group = one(rendered("gpu-small"), "RayCluster", "ray")["spec"]["workerGroupSpecs"][0]

    assert group["maxReplicas"] == 1
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 4


def test_a_full_disk_or_an_absent_ray_makes_no_job_worker_unready(say: Say, monkeypatch: pytest.MonkeyPatch):
    container = one(rendered("gpu-small"), "Deployment", "job-worker")["spec"]["template"]["spec"]["containers"][0]
    ready = container["readinessProbe"]["exec"]["command"][1:]
    monkeypatch.setattr("cluster.health.FREE_BYTES_LEAST", 10**18)
    monkeypatch.setenv("NIGHTSHIFT_RAY_JOBS_URL", "http://127.0.0.1:1")

    doctor, with_redis = say("doctor")[0], say(*ready)[0]
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", "redis://127.0.0.1:1/0")
    without_redis = say(*ready)[0]

    assert (doctor, with_redis, without_redis) == (1, 0, 1)
    assert [container[name]["tcpSocket"] for name in ("startupProbe", "livenessProbe")] == [{"port": "metrics"}] * 2
