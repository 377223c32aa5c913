"""Scheduling rules: on which node a pod may run, when it may be evicted, and what Kueue's quota grants."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from jobs.cli.reconcile import SLACK_SECONDS
from jobs.queue.reconciler import STUCK_SECONDS
from tests.k8s_manifests import K8S, Manifest, of_kind, one, pods
from tests.k8s_policies import Policy
from tests.k8s_quantities import number

SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
DURING = "DuringSchedulingIgnoredDuringExecution"
GPU_NODE_LABELS = {  # the GPU operator, GKE, Karpenter on AWS
    "nvidia.com/gpu.present",
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-count",
}


def no_pod_waits_for_a_node_while_one_has_room(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Spreading is preferred, not required: slices of one GPU share a node and would otherwise stay pending."""
    for pod in pods(manifests):
        if any(c["whenUnsatisfiable"] != "ScheduleAnyway" for c in pod.spec.get("topologySpreadConstraints", [])):
            yield f"{pod.name} waits for another node while one has room"


def reconciling_ends_before_it_is_killed(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Its deadline covers one lease, plus a minute to start and to report."""
    lease_seconds = float(one(manifests, "ConfigMap", "nightshift")["data"]["NIGHTSHIFT_LEASE_SECONDS"])
    allowed = one(manifests, "CronJob", "reconcile")["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    if allowed < max(lease_seconds, STUCK_SECONDS) + SLACK_SECONDS + 60:
        yield f"{allowed} seconds are too few to watch a run for a lease of {lease_seconds:.0f}"


def what_a_run_hangs_on_is_not_moved_to_save_a_node(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Neither Karpenter nor the cluster autoscaler evicts Ray's pods, Redis, KEDA's job workers or a submitter.

    The others may be evicted, although the cluster autoscaler would keep a node for each pod with an emptyDir.
    """
    for pod in pods(manifests):
        stays = pod.is_ray or pod.labels["app.kubernetes.io/component"] in ("redis", "job-submitter")
        stays |= pod.kind == "ScaledJob"
        if stays and pod.annotations.get("karpenter.sh/do-not-disrupt") != "true":
            yield f"{pod.name} may be moved in mid-run"
        if pod.annotations.get(SAFE_TO_EVICT) != ("false" if stays else "true"):
            yield f"{pod.name} {'may be moved in mid-run' if stays else 'holds its node'}"


def pods_without_gpus_keep_away_from_gpu_nodes(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A pod that stays where it is on a GPU node would keep the node, idle and paid for."""
    for pod in (p for p in pods(manifests) if p.labels.get("ray.io/node-type") != "worker"):
        rules = pod.spec.get("affinity", {}).get("nodeAffinity", {})
        preferred = [rule["preference"] for rule in rules.get(f"preferred{DURING}", [])]
        terms = preferred or rules.get(f"required{DURING}", {}).get("nodeSelectorTerms", [])
        avoided = [{e["key"] for e in term["matchExpressions"] if e["operator"] == "DoesNotExist"} for term in terms]
        if avoided != [GPU_NODE_LABELS]:
            yield f"{pod.name} may hold a GPU node"


def a_changed_image_reaches_the_ray_cluster(manifests: Sequence[Manifest]) -> Iterator[str]:
    """KubeRay replaces the pods of a changed cluster only if told so (1.6 and newer)."""
    for cluster in of_kind(manifests, "RayCluster"):
        if cluster["spec"].get("upgradeStrategy", {}).get("type") != "Recreate":
            yield "an upgrade leaves the old pods of the Ray cluster"


def probes_ask_only_what_a_restart_repairs(manifests: Sequence[Manifest]) -> Iterator[str]:
    """`doctor` also fails if the disk is nearly full or Ray is away."""
    for pod in pods(manifests):
        for name, probe in ((n, p) for c in pod.containers for n, p in c.items() if n.endswith("Probe")):
            command = probe.get("exec", {}).get("command", [])
            if command[:1] == ["nightshift"] and (name != "readinessProbe" or "doctor" in command):
                yield f"{pod.name}: the {name} runs {' '.join(command)}"


def workers_that_are_not_ready_hold_nothing_up(manifests: Sequence[Manifest]) -> Iterator[str]:
    """They block neither a node drain nor, within the timeout in the README, a rollout."""
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"PodDisruptionBudget {budget['metadata']['name']} keeps pods that are not ready on a drained node"
    waits = re.search(r"rollout status deployment/job-worker --timeout (\d+)m", (K8S / "README.md").read_text())
    for worker in (m for m in of_kind(manifests, "Deployment") if m["metadata"]["name"] == "job-worker"):
        if waits is None or worker["spec"].get("progressDeadlineSeconds", 600) < 60 * int(waits[1]):
            yield "the rollout of job workers is given up before README does"


def shortages(manifests: Sequence[Manifest]) -> list[str]:
    """Return the resources that Kueue would not grant a permanent cluster; Kueue admits only whole clusters."""
    queue = one(manifests, "ClusterQueue", "nightshift")["spec"]["resourceGroups"][0]
    quotas = {r["name"]: number(r["nominalQuota"]) for r in queue["flavors"][0]["resources"]}
    found = [f"{name} has no quota" for name in queue["coveredResources"] if name not in quotas]
    found += [f"{name} is not covered" for name in quotas if name not in queue["coveredResources"]]
    wanted: Counter[str] = Counter()
    for cluster in of_kind(manifests, "RayCluster"):
        group = cluster["spec"]["workerGroupSpecs"][0]
        if not group["replicas"] == group["minReplicas"] == group["maxReplicas"]:
            found.append("the size was changed after Kueue's component had taken it over")
        for template, copies in ((cluster["spec"]["headGroupSpec"], 1), (group, group["maxReplicas"])):
            asked = template["template"]["spec"]["containers"][0]["resources"]["requests"]
            wanted.update({name: copies * number(amount) for name, amount in asked.items()})
    return found + [f"{name}: {wanted[name]:.0f} asked" for name in wanted if wanted[name] > quotas.get(name, 0)]


SCHEDULING: tuple[Policy, ...] = (
    pods_without_gpus_keep_away_from_gpu_nodes,
    a_changed_image_reaches_the_ray_cluster,
    probes_ask_only_what_a_restart_repairs,
    no_pod_waits_for_a_node_while_one_has_room,
    reconciling_ends_before_it_is_killed,
    what_a_run_hangs_on_is_not_moved_to_save_a_node,
    workers_that_are_not_ready_hold_nothing_up,
)
