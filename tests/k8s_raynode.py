"""The command and environment that KubeRay gives a RayCluster's pods (v1.7.0, controllers/ray/common/pod.go)."""

from collections.abc import Mapping

from tests.k8s_manifests import Manifest, Pod
from tests.k8s_quantities import number

GCS_PORT, DASHBOARD_PORT, AGENT_PORT, METRICS_PORT = 6379, 8265, 52365, 8080
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
HEALTH = f"http://127.0.0.1:{AGENT_PORT}/api/healthz"  # both probes that KubeRay adds since Ray 2.53


def head_service(cluster: Manifest) -> str:
    """Return the full name of the head's Service."""
    metadata = cluster["metadata"]
    return f"{metadata['name']}-head-svc.{metadata['namespace']}.svc.cluster.local"


def ray_command(cluster: Manifest, pod: Pod) -> list[str]:
    """Return the command that the container runs."""
    is_head = pod.labels["ray.io/node-type"] == "head"
    group = cluster["spec"]["headGroupSpec"] if is_head else _group(cluster, pod)
    limits = pod.spec["containers"][0]["resources"]["limits"]
    defaults = {
        "num-cpus": str(int(number(limits["cpu"]))),
        "memory": str(int(number(limits["memory"]))),
        "metrics-export-port": str(METRICS_PORT),
        "dashboard-agent-listen-port": str(AGENT_PORT),
    }
    if gpus := [amount for name, amount in limits.items() if name.endswith("gpu")]:
        defaults["num-gpus"] = str(gpus[0])
    own = {"dashboard-host": "0.0.0.0"} if is_head else {"address": f"{head_service(cluster)}:{GCS_PORT}"}
    state = {"redis-username": "$REDIS_USERNAME", "redis-password": "$REDIS_PASSWORD"}
    parameters = {**defaults, **own, **(state if is_head and _keeps_state(cluster) else {}), **group["rayStartParams"]}
    switches = ["--head", "--block"] if is_head else ["--block"]
    if is_head and cluster["spec"].get("enableInTreeAutoscaling"):
        switches.append("--no-monitor")
    words = [*switches, *(f"--{name}={value}" for name, value in sorted(parameters.items()))]
    return ["/bin/bash", "-c", "--", f"ulimit -n 65536; ray start {' '.join(words)}"]


def ray_environment(cluster: Manifest, pod: Pod, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the variables that KubeRay adds to the container's own environment; `secrets` by name and key."""
    is_head = pod.labels["ray.io/node-type"] == "head"
    head = "127.0.0.1" if is_head else head_service(cluster)
    added = {
        "RAY_ADDRESS": f"{head}:{GCS_PORT}",
        "RAY_PORT": str(GCS_PORT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets[cluster["spec"]["authOptions"]["secretName"]]["auth_token"],
        "RAY_CLUSTER_NAME": cluster["metadata"]["name"],
        "RAY_CLUSTER_NAMESPACE": cluster["metadata"]["namespace"],
        "RAY_CLOUD_INSTANCE_ID": pod.name,
        "RAY_NODE_TYPE_NAME": pod.labels.get("ray.io/group", "headgroup"),
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
    }
    if is_head and cluster["spec"].get("autoscalerOptions", {}).get("version") == "v2":
        added["RAY_enable_autoscaler_v2"] = "true"
    if _keeps_state(cluster):
        added |= _state_environment(cluster, secrets) if is_head else {RECONNECT: "600"}
    return added if is_head else {**added, "FQ_RAY_IP": head}


def _keeps_state(cluster: Manifest) -> bool:
    return "gcsFaultToleranceOptions" in cluster["spec"]


def _state_environment(cluster: Manifest, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    options = cluster["spec"]["gcsFaultToleranceOptions"]
    reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    return {
        "RAY_external_storage_namespace": "uid-of-the-cluster",
        "RAY_REDIS_ADDRESS": options["redisAddress"],
        "REDIS_USERNAME": options["redisUsername"]["value"],
        "REDIS_PASSWORD": secrets[reference["name"]][reference["key"]],
    }


def _group(cluster: Manifest, pod: Pod) -> Manifest:
    return next(g for g in cluster["spec"]["workerGroupSpecs"] if g["groupName"] == pod.labels["ray.io/group"])
