import copy

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from tests.k8s_kuberay import complaints_of_kuberay
from tests.k8s_manifests import Manifest, combinations, needs_kubectl, of_kind, one, rendered
from tests.k8s_schemas import UNPUBLISHED, complaints_of_schema, group_of, needs_kuberay_schemas

pytestmark = needs_kubectl
every_combination = pytest.mark.parametrize(
    ("overlay", "components"), combinations(), ids=lambda value: value if isinstance(value, str) else "+".join(value)
)


@every_combination
def test_every_core_manifest_is_valid_under_its_strict_schema(overlay, components):
    manifests = [m for m in rendered(overlay, components) if group_of(m) not in {"ray.io", *UNPUBLISHED}]

    assert [text for manifest in manifests for text in complaints_of_schema(manifest)] == []


@needs_kuberay_schemas
@every_combination
def test_every_ray_cluster_is_valid_under_its_strict_schema(overlay, components):
    clusters = of_kind(rendered(overlay, components), "RayCluster")

    assert [text for cluster in clusters for text in complaints_of_schema(cluster)] == []
    assert len(clusters) == 1


@every_combination
def test_kuberay_would_accept_every_ray_cluster(overlay, components):
    assert complaints_of_kuberay(rendered(overlay, components)) == []


@every_combination
def test_no_two_manifests_share_a_kind_and_name(overlay, components):
    names = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in rendered(overlay, components)]

    assert len(names) == len(set(names))


@every_combination
def test_rays_autoscaler_counts_every_gpu_of_a_ray_cluster(overlay, components):
    manifests = rendered(overlay, components)
    cluster = one(manifests, "RayCluster", "ray")

    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]

    gpus = sum(each["max_workers"] * each["resources"].get("GPU", 0) for each in types.values())
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert gpus == int(one(manifests, "ConfigMap", "nightshift")["data"]["NIGHTSHIFT_CLUSTER_GPUS"])
    assert (gpus > 0) == (overlay != "kind")


def test_without_a_stated_number_rays_autoscaler_does_not_see_a_mig_slice():
    cluster = one(rendered("gpu-small", ["mig"]), "RayCluster", "ray")
    del cluster["spec"]["workerGroupSpecs"][0]["rayStartParams"]["num-gpus"]

    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]

    assert "GPU" not in types["gpu"]["resources"]


@pytest.mark.parametrize(
    ("kind", "name", "path", "misspelt"),
    [
        ("Deployment", "job-worker", ["spec", "template", "spec"], {"terminationGracePeriod": 5}),
        ("StatefulSet", "redis", ["spec"], {"replica": 1}),
        ("CronJob", "reconcile", ["spec"], {"concurrency": "Forbid"}),
        ("NetworkPolicy", "redis", ["spec"], {"ingres": []}),
        ("PodDisruptionBudget", "job-worker", ["spec"], {"maxUnavailabel": 1}),
        ("Service", "redis", ["spec", "ports", 0], {"targetport": 1}),
        ("Deployment", "job-worker", ["spec"], {"replicas": "two"}),
    ],
)
def test_a_misspelt_field_of_a_core_kind_is_detected(kind, name, path, misspelt):
    manifest = one(rendered("gpu-small"), kind, name)
    at(manifest, path).update(misspelt)

    assert complaints_of_schema(manifest) != []


@needs_kuberay_schemas
@pytest.mark.parametrize(
    ("path", "misspelt"),
    [
        (["spec"], {"rayversion": "2.60.0"}),
        (["spec", "authOptions"], {"mode": "password"}),
        (["spec", "autoscalerOptions"], {"idleTimeout": 60}),
        (["spec", "headGroupSpec"], {"rayStartParam": {}}),
        (["spec", "workerGroupSpecs", 0], {"maxReplicas": "4"}),
        (["spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0], {"imagePullPolice": "Always"}),
        (["spec", "workerGroupSpecs", 0, "template", "spec", "volumes", 0], {"emptydir": {}}),
    ],
)
def test_a_misspelt_field_of_a_ray_cluster_is_detected(path, misspelt):
    cluster = one(rendered("gpu-small"), "RayCluster", "ray")
    at(cluster, path).update(misspelt)

    assert complaints_of_schema(cluster) != []


@pytest.mark.parametrize(
    ("path", "change", "complaint"),
    [
        (["metadata"], {"name": "r" * 54}, "longer than 53"),
        (["metadata"], {"name": "9ray"}, "DNS-1035"),
        (["spec"], {"rayVersion": ""}, "needs rayVersion"),
        (["spec"], {"rayVersion": "2.51.0"}, "needs Ray 2.52.0"),
        (["spec"], {"tlsOptions": {"enabled": True}}, "feature gate"),
        (["spec", "authOptions"], {"enableK8sTokenAuth": True}, "exclude each other"),
        (["spec", "headGroupSpec"], {"resources": {"CPU": "1"}}, "resources twice"),
        (["spec", "headGroupSpec", "rayStartParams"], {"num-cpus": 0}, "must be strings"),
        (["spec", "headGroupSpec", "rayStartParams"], {"labels": "a=b"}, "must not hold labels"),
        (["spec", "headGroupSpec", "template", "spec"], {"restartPolicy": "Always"}, "restartPolicy Never"),
        (["spec", "headGroupSpec", "template", "spec"], {"containers": []}, "no container"),
        (["spec", "workerGroupSpecs", 0, "template", "spec"], {"restartPolicy": "OnFailure"}, "restartPolicy Never"),
        (["spec", "workerGroupSpecs", 0], {"minReplicas": 5}, "greater than maxReplicas"),
        (["spec", "workerGroupSpecs", 0], {"minReplicas": -1}, "negative"),
        (["spec", "workerGroupSpecs", 0], {"suspend": True}, "suspend"),
        (["spec", "autoscalerOptions"], {"version": "v1", "idleTimeoutSeconds": -1}, "is negative"),
    ],
)
def test_a_ray_cluster_that_kuberay_would_reject_is_detected(path, change, complaint):
    manifests = rendered("gpu-small")
    at(one(manifests, "RayCluster", "ray"), path).update(change)

    assert any(complaint in text for text in complaints_of_kuberay(manifests))


def test_without_autoscaling_both_bounds_must_be_set():
    manifests = rendered("gpu-small", ["kueue"])
    del one(manifests, "RayCluster", "ray")["spec"]["workerGroupSpecs"][0]["maxReplicas"]

    assert any("both minReplicas and maxReplicas" in text for text in complaints_of_kuberay(manifests))


def test_a_changed_setting_gives_the_config_map_a_new_name_that_all_pods_use():
    plain, other = rendered("gpu-small"), rendered("gpu-small", ["tls"])

    assert config_name(plain) != config_name(other)
    assert config_name(other) in str(one(other, "RayCluster", "ray"))
    assert config_name(other) in str(one(other, "Deployment", "job-worker"))


def config_name(manifests: list[Manifest]) -> str:
    return str(one(manifests, "ConfigMap", "nightshift")["metadata"]["name"])


def at(manifest: Manifest, path: list[str | int]) -> Manifest:
    place = manifest
    for step in path:
        place = place[step]
    return copy.copy(place) if place is None else place
