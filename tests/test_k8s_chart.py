"""The Helm chart: rendered by Helm itself, object by object the same as kustomize."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.version import VERSION
from k8s.chart_values import COMPONENTS as SWITCHES
from k8s.make_chart import digest, is_possible, manifests_of
from tests.k8s_helm import needs_helm, template
from tests.k8s_kuberay import complaints_of_kuberay
from tests.k8s_manifests import K8S, Manifest, Pod, needs_kubectl, of_kind, one, pods, rendered
from tests.k8s_policies import POLICIES
from tests.k8s_scheduling import SCHEDULING
from tests.k8s_wiring import WIRING

CHART = K8S / "chart"
ADDING = ("keda", "dashboard", "prometheus", "dcgm")
KEEP = {"helm.sh/resource-policy": "keep"}
EVERYTHING = (*ADDING, "tls", "s3", "airgap", "mig", "kueue", "quota", "openshift")
LARGE = ("keda", "dashboard", "tls", "s3", "time-slicing", "quota", "rdma")


def test_the_chart_was_made_of_the_manifests_as_they_are():
    made_of = (CHART / "sources.sha256").read_text().strip()

    assert made_of == digest(), "run `make chart` and commit k8s/chart"


def test_the_chart_has_the_version_of_the_project_and_the_images_of_kustomize():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    images = yaml.safe_load((K8S / "images" / "kustomization.yaml").read_text())["images"]

    assert chart["version"] == chart["appVersion"] == VERSION
    assert {i["name"]: i["tag"] for i in values["images"].values()} == {i["name"]: i["newTag"] for i in images}
    assert set(values["components"]) == set(SWITCHES.values()) - {"ingress"}


def helm(*options: str, chart: Path = CHART) -> list[Manifest]:
    """Render the chart in the namespace nightshift, unless the options name another."""
    done = template(*(("-n", "nightshift") if "-n" not in options else ()), *options, chart=chart)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if manifest]


def objects(manifests: list[Manifest]) -> dict[tuple[str, str], Any]:
    """Return manifests by kind and name without what only Helm or only kustomize has."""
    found = manifests_of(yaml.dump_all(manifests, Dumper=yaml.CSafeDumper))
    for pod in pods(list(found.values())):
        pod.spec.pop("imagePullSecrets", None)  # compared by pull_secrets
        pod.annotations.pop("checksum/config", None)  # in kustomize, the name of the ConfigMap has the hash
    for manifest in found.values():
        if manifest["metadata"].get("annotations") == KEEP:  # Helm alone
            del manifest["metadata"]["annotations"]
    return found


def pull_secrets(manifests: list[Manifest]) -> dict[str, list[str]]:
    """Return the pull secrets of each pod: its own ones, or in kustomize those of the service account `default`."""
    account = next((a for a in of_kind(manifests, "ServiceAccount") if a["metadata"]["name"] == "default"), {})
    return {
        pod.name: [
            secret["name"]
            for secret in pod.spec.get("imagePullSecrets", [])
            or (account.get("imagePullSecrets", []) if "serviceAccountName" not in pod.spec else [])
        ]
        for pod in pods(manifests)
    }


def switched_on(*components: str) -> list[str]:
    return [word for name in components for word in ("--set", f"components.{SWITCHES[name]}=true")]


@needs_helm
@needs_kubectl
@pytest.mark.parametrize(
    ("overlay", "components"),
    [("gpu-small", ()), ("gpu-small", EVERYTHING), ("gpu-large", LARGE), ("kind", ("rayjobs",))],
    ids=["default", "everything", "large", "rayjobs"],
)
def test_helm_and_kustomize_render_the_same_objects(overlay, components):
    ours, theirs = helm("--set", f"size={overlay}", *switched_on(*components)), rendered(overlay, components)

    assert pull_secrets(ours) == pull_secrets(theirs)
    made, expected = objects(ours), objects(theirs)
    assert made.keys() == expected.keys()
    assert [key for key in made if made[key] != expected[key]] == []


@needs_helm
@needs_kubectl
def test_the_example_values_render_what_the_example_overlay_renders():
    ours, theirs = helm("-n", "team-a", "-f", str(CHART / "example-values.yaml")), rendered("example")

    assert pull_secrets(ours) == pull_secrets(theirs)
    assert {name for names in pull_secrets(ours).values() for name in names} == {"team-a-registry"}
    made, expected = objects(ours), objects(theirs)
    assert made.keys() == expected.keys()
    assert [key for key in made if made[key] != expected[key]] == []


@needs_helm
def test_the_values_of_a_site_reach_every_place_that_states_them():
    sizes = {"workers.maxReplicas": 3, "workers.gpus": 2, "jobWorkers.replicas": 5}
    texts = {"workers.requests.memory": "30Gi", "workers.limits.memory": "33G", "workers.sharedMemory": "9Gi"}
    texts |= {"quota.cpu": "77", "quota.memory": "500Gi", "quota.ephemeralStorage": "90Gi"}
    options = [w for n, v in sizes.items() for w in ("--set", f"{n}={v}")]
    options += [w for n, v in texts.items() for w in ("--set-string", f"{n}={v}")]

    manifests = helm(*options, *switched_on("dashboard", "kueue", "quota"), "--set", "ingress.host=gpu.example.com")

    group = one(manifests, "RayCluster", "ray")["spec"]["workerGroupSpecs"][0]
    container = group["template"]["spec"]["containers"][0]
    flavor = one(manifests, "ClusterQueue", "nightshift")["spec"]["resourceGroups"][0]["flavors"][0]
    quotas = {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}
    hard = one(manifests, "ResourceQuota", "nightshift")["spec"]["hard"]
    assert [group[name] for name in ("replicas", "minReplicas", "maxReplicas")] == [3, 3, 3]
    assert [container["resources"][side]["nvidia.com/gpu"] for side in ("requests", "limits")] == [2, 2]
    assert container["resources"]["requests"]["memory"] == "30Gi"
    assert group["template"]["spec"]["volumes"][1]["emptyDir"]["sizeLimit"] == "9Gi"
    assert one(manifests, "ConfigMap", "nightshift")["data"]["NIGHTSHIFT_CLUSTER_GPUS"] == "6"
    assert (quotas["nvidia.com/gpu"], quotas["cpu"], hard["requests.nvidia.com/gpu"]) == ("6", "77", "6")
    assert one(manifests, "Deployment", "job-worker")["spec"]["replicas"] == 5
    (ingress,) = of_kind(manifests, "Ingress")
    assert (
        [rule["host"] for rule in ingress["spec"]["rules"]] == ingress["spec"]["tls"][0]["hosts"] == ["gpu.example.com"]
    )


@needs_helm
@pytest.mark.parametrize(
    ("values", "gpus"),
    [("workers.maxReplicas=3", "12"), ("workers.gpus=2", "2"), ("size=gpu-large,workers.gpus=2", "8")],
)
def test_without_the_permanent_cluster_the_quota_of_rayjobs_is_that_of_the_size(values, gpus):
    quota = "quota.cpu=77000m,quota.memory=500Gi,quota.ephemeralStorage=90Gi"

    manifests = helm("--set", values, "--set", quota, *switched_on("rayjobs", "kueue", "quota"))

    flavor = one(manifests, "ClusterQueue", "nightshift")["spec"]["resourceGroups"][0]["flavors"][0]
    assert {"name": "nvidia.com/gpu", "nominalQuota": gpus} in flavor["resources"]
    assert one(manifests, "ResourceQuota", "nightshift")["spec"]["hard"]["requests.nvidia.com/gpu"] == gpus
    assert one(manifests, "ConfigMap", "nightshift")["data"]["NIGHTSHIFT_CLUSTER_GPUS"] == "0"


@needs_helm
def test_the_dashboards_admit_the_ingress_controller_of_the_site():
    values = "ingress.host=gpu.example.com,ingress.className=traefik,ingress.namespace=traefik"

    manifests = helm("--set", values, *switched_on("dashboard"))

    (source,) = one(manifests, "NetworkPolicy", "dashboard")["spec"]["ingress"][0]["from"]
    assert source == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "traefik"}}}
    assert one(manifests, "Ingress", "dashboard")["spec"]["ingressClassName"] == "traefik"


@needs_helm
def test_an_image_may_be_named_by_its_digest():
    tag = f"0.1.0@sha256:{'0' * 64}"

    manifests = helm("--set", f"images.redis.tag={tag}")

    (redis,) = (pod for pod in pods(manifests) if pod.name == "redis")
    assert f"valkey/valkey:{tag}" in [container["image"] for container in redis.containers]


@needs_helm
def test_the_chart_satisfies_the_policies_and_keeps_the_storage():
    manifests = helm(*switched_on(*ADDING, "tls", "kueue"))
    namespace = yaml.safe_load((K8S / "base" / "namespace.yaml").read_text())
    namespace["metadata"]["labels"]["app.kubernetes.io/part-of"] = "nightshift"

    found = [text for policy in (*POLICIES, *WIRING, *SCHEDULING) for text in policy([namespace, *manifests])]

    assert found == complaints_of_kuberay(manifests) == []
    claim = one(manifests, "PersistentVolumeClaim", "storage")
    assert claim["metadata"]["annotations"] == KEEP


@needs_helm
def test_one_release_owns_the_objects_of_the_whole_cluster_and_keeps_them():
    options = ("--set", "size=gpu-large", *switched_on("kueue"))
    owner, other = helm(*options), helm(*options, "--set", "clusterObjects=false")

    of_the_cluster = [m for kind in ("ClusterQueue", "PriorityClass", "ResourceFlavor") for m in of_kind(owner, kind)]

    assert len(of_the_cluster) == 4
    assert [m["metadata"]["annotations"] for m in of_the_cluster] == [KEEP] * len(of_the_cluster)
    assert other == [manifest for manifest in owner if manifest not in of_the_cluster]


@needs_helm
@pytest.mark.parametrize(
    ("size", "components"),
    [
        ("gpu-large", ["rdma", "rayjobs"]),
        ("gpu-small", ["rdma"]),
        ("kind", ["mig"]),
        ("gpu-small", ["mig", "time-slicing"]),
        ("gpu-small", ["ingress"]),
    ],
    ids=str,
)
def test_the_chart_refuses_what_it_was_not_made_of(size, components):
    switched = switched_on(*(name for name in components if name != "ingress"))
    host = ["--set", "ingress.host=a.example.com"] if "ingress" in components else []

    done = template("--set", f"size={size}", *switched, *host)

    assert (done.returncode, is_possible(frozenset({size, *components}))) == (1, False)


@needs_helm
def test_the_labels_by_which_prometheus_selects_are_on_all_its_objects():
    labels = ("--set", "monitorLabels.release=kube-prometheus-stack")

    manifests = helm(*labels, *switched_on("prometheus", "dcgm"))

    found = [m for kind in ("PodMonitor", "PrometheusRule") for m in of_kind(manifests, kind)]
    assert len(found) == 5
    assert {m["metadata"]["labels"]["release"] for m in found} == {"kube-prometheus-stack"}


@needs_helm
@pytest.mark.parametrize("name", ["nightshift", "redis", "dashboard"])
def test_a_changed_configmap_replaces_the_pods_that_read_it_alone(name, tmp_path):
    chart = shutil.copytree(CHART, tmp_path / "chart")
    file = chart / "templates" / f"config-{name}.yaml"
    file.write_text(file.read_text().replace("\ndata:\n", "\ndata:\n  ANOTHER: line\n"))
    plain, other = helm(*switched_on("dashboard")), helm(*switched_on("dashboard"), chart=chart)

    changed = [
        pod.name
        for pod, again in zip(pods(plain), pods(other), strict=True)
        if pod.annotations.get("checksum/config") != again.annotations.get("checksum/config")
    ]

    # The next pod of a CronJob reads the ConfigMap anew.
    assert changed == [pod.name for pod in pods(plain) if name in configmaps_of(pod) and pod.kind != "CronJob"] != []


def configmaps_of(pod: Pod) -> list[str]:
    """Return the names of the ConfigMaps that a pod reads, from its environment or as files."""
    sources = [source for c in pod.containers for source in c.get("envFrom", [])]
    return [
        found["name"]
        for place in (*sources, *pod.spec.get("volumes", []))
        for kind, found in place.items()
        if kind in ("configMapRef", "configMap")
    ]


@needs_helm
@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("size=gpu-smal", "size"),
        ("components.kueu=true", "kueu"),
        ("settings.NIGHTSHIFT_HANG_SECOND=5", "NIGHTSHIFT_HANG_SECOND"),
        ("storage.size=big", "size"),
        ("storage.size=5KB", "size"),
        (f"images.nightshift.tag=sha256:{'0' * 64}", "tag"),
        ("workers.gpus=0", "gpus"),
        ("components.rdma=true", "set size to gpu-large"),
        ("size=gpu-large,components.rdma=true,components.rayjobs=true", "rdma is for the permanent cluster"),
        ("components.mig=true,components.timeSlicing=true", "are alternatives; set one of them to false"),
        ("size=kind,workers.gpus=1", "size kind has no GPUs"),
        ("components.mig=true,workers.gpus=2", "set workers.gpus to null"),
        ("components.kueue=true,workers.maxReplicas=9", "set quota.cpu, quota.memory and quota.ephemeralStorage"),
        ("workers.requests.memory=2Gi,workers.limits.memory=2000Mi", "requests.memory 2Gi is more than workers.limits"),
        ("workers.requests.cpu=8,workers.limits.cpu=7500m", "workers.requests.cpu 8 is more than workers.limits.cpu"),
        ("ingress.host=a.example.com", "set components.dashboard to true"),
        ("monitorLabels.release=prometheus", "monitorLabels are of the components prometheus and dcgm"),
        ("components.prometheus=true,monitorLabels.release=two words", "release"),
    ],
)
def test_a_value_that_cannot_work_is_refused(option, complaint):
    done = template("--set", option)

    assert done.returncode == 1
    assert complaint in done.stderr
