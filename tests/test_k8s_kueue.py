"""The quotas of Kueue are enough for the permanent cluster; one that is not is detected."""

import pytest

from tests.k8s_manifests import Manifest, combinations, needs_kubectl, one, ray, rendered
from tests.k8s_scheduling import shortages

pytestmark = needs_kubectl


@pytest.mark.parametrize(("overlay", "components"), [(o, c) for o, c in combinations() if "kueue" in c])
def test_kueue_grants_all_that_the_permanent_cluster_requests(overlay, components):
    manifests = rendered(overlay, components)
    labels = one(manifests, "RayCluster", "ray")["metadata"]["labels"]

    assert shortages(manifests) == []
    assert one(manifests, "LocalQueue", labels["kueue.x-k8s.io/queue-name"])["spec"]["clusterQueue"] == "nightshift"
    assert not ray(manifests)["enableInTreeAutoscaling"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: quotas(m)[0].update(nominalQuota=14),
        lambda m: quotas(m).pop(),
        lambda m: cluster_queue(m)["coveredResources"].remove("nvidia.com/mig-1g.10gb"),
        lambda m: ray(m)["workerGroupSpecs"][0].update(maxReplicas=8),
    ],
    ids=["too little", "no quota", "not covered", "kueue before mig"],
)
def test_a_quota_too_small_for_the_permanent_cluster_is_detected(change):
    manifests = rendered("gpu-small", ["mig", "kueue"])
    change(manifests)

    assert shortages(manifests) != []


def cluster_queue(manifests: list[Manifest]) -> Manifest:
    found: Manifest = one(manifests, "ClusterQueue", "nightshift")["spec"]["resourceGroups"][0]
    return found


def quotas(manifests: list[Manifest]) -> list[Manifest]:
    found: list[Manifest] = cluster_queue(manifests)["flavors"][0]["resources"]
    return found
