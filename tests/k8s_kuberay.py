"""KubeRay's rules across fields, which the schema lacks (v1.7.0, ray-operator/controllers/ray/utils/validation.go)."""

import re
from collections.abc import Iterator, Sequence

from tests.k8s_manifests import Manifest

CLUSTER_NAME_LENGTH = 53
JOB_NAME_LENGTH = 47
AUTH_SINCE = (2, 52, 0)
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
RESOURCE_PARAMETERS = {"num-cpus", "num-gpus", "memory", "resources"}
ALPHA_FIELDS = ("networkPolicy", "tlsOptions", "historyServerOptions")  # behind feature gates that are off
V2_SWITCH = "RAY_enable_autoscaler_v2"
QUEUE = "kueue.x-k8s.io/queue-name"
WORKER_GROUPS = 7  # Kueue's pod sets are eight, and the head is one


def complaints_of_kuberay(manifests: Sequence[Manifest]) -> list[str]:
    """Return the reasons why the operator would reject the manifest."""
    found: list[str] = []
    for manifest in manifests:
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        if manifest["kind"] == "RayCluster":
            found += _name(name, CLUSTER_NAME_LENGTH)
            found += [f"{name}: {text}" for text in _cluster(spec)]
        elif manifest["kind"] == "RayJob":
            found += _name(name, JOB_NAME_LENGTH)
            found += [f"{name}: {text}" for text in _job(spec)]
    return found


def _name(name: str, longest: int) -> Iterator[str]:
    if len(name) > longest:
        yield f"name {name} is longer than {longest} characters"
    if not DNS_1035.fullmatch(name):
        yield f"name {name} is no DNS-1035 label"


def _cluster(spec: Manifest) -> Iterator[str]:
    for field in ALPHA_FIELDS:
        if field in spec:
            yield f"{field} needs a feature gate"
    yield from _auth(spec)
    head, groups = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    for label, group in [("head", head), *((group["groupName"], group) for group in groups)]:
        yield from (f"{label}: {text}" for text in _group(group))
    autoscaled = bool(spec.get("enableInTreeAutoscaling"))
    for group in groups:
        yield from (f"{group['groupName']}: {text}" for text in _replicas(group, autoscaled=autoscaled))
    yield from _autoscaler(spec, autoscaled=autoscaled)
    yield from _head_environment(spec)


def _auth(spec: Manifest) -> Iterator[str]:
    if spec.get("authOptions", {}).get("mode") != "token":
        return
    version = str(spec.get("rayVersion", ""))
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"token auth needs rayVersion, which is {version!r}"
    elif tuple(map(int, version.split("."))) < AUTH_SINCE:
        yield f"token auth needs Ray 2.52.0, rayVersion is {version}"
    if spec["authOptions"].get("enableK8sTokenAuth") and spec["authOptions"].get("secretName"):
        yield "enableK8sTokenAuth and secretName exclude each other"


def _group(group: Manifest) -> Iterator[str]:
    parameters = group.get("rayStartParams", {})
    if not group["template"]["spec"].get("containers"):
        yield "has no container"
    if group.get("resources") and RESOURCE_PARAMETERS & parameters.keys():
        yield "says resources twice, in rayStartParams and in resources"
    if "labels" in parameters:
        yield "rayStartParams must not hold labels"
    if any(not isinstance(value, str) for value in parameters.values()):
        yield "rayStartParams must be strings"


def _replicas(group: Manifest, *, autoscaled: bool) -> Iterator[str]:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if not autoscaled and (least is None or most is None):
        yield "without autoscaling both minReplicas and maxReplicas must be set"
    if (least or 0) < 0 or (most or 0) < 0:
        yield "minReplicas and maxReplicas must not be negative"
    if least is not None and most is not None and least > most:
        yield f"minReplicas {least} is greater than maxReplicas {most}"
    if group.get("suspend"):
        yield "suspend needs a feature gate, and no autoscaling"


def _autoscaler(spec: Manifest, *, autoscaled: bool) -> Iterator[str]:
    options = spec.get("autoscalerOptions", {})
    is_v2 = autoscaled and options.get("version") == "v2"
    groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
    policies = {group["template"]["spec"].get("restartPolicy", "Never") for group in groups}
    if is_v2 and policies != {"Never"}:
        yield f"autoscaler v2 wants restartPolicy Never or none, found {sorted(policies)}"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "idleTimeoutSeconds is negative"
    for group in spec.get("workerGroupSpecs", []):
        if not is_v2 and ("idleTimeoutSeconds" in group or group.get("priority")):
            yield f"{group['groupName']}: idleTimeoutSeconds and priority need autoscaler v2"
    switch = [v for v in _environment(spec) if v["name"] == V2_SWITCH]
    if switch and (not autoscaled or "version" in options):
        yield f"{V2_SWITCH} must be left to autoscalerOptions.version"


def _head_environment(spec: Manifest) -> Iterator[str]:
    names = {variable["name"] for variable in _environment(spec)}
    if "RAY_REDIS_ADDRESS" in names:
        yield "RAY_REDIS_ADDRESS belongs into gcsFaultToleranceOptions"
    if "REDIS_USERNAME" in names:
        yield "REDIS_USERNAME belongs into gcsFaultToleranceOptions"


def _environment(spec: Manifest) -> list[Manifest]:
    containers = spec["headGroupSpec"]["template"]["spec"].get("containers") or [{}]
    found: list[Manifest] = containers[0].get("env", [])
    return found


def _job(spec: Manifest) -> Iterator[str]:
    yield from _deletion(spec)
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if "rayClusterSpec" not in spec and not spec.get("clusterSelector"):
        yield "one of rayClusterSpec or clusterSelector must be set"
    if spec.get("backoffLimit", 0) < 0 or spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "backoffLimit and ttlSecondsAfterFinished must not be negative"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} must be positive"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode has no submitter pod"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0):
        yield "InteractiveMode has no retries"
    if "upgradeStrategy" in spec.get("rayClusterSpec", {}):
        yield "upgradeStrategy is for standing clusters"
    if "rayClusterSpec" in spec:
        yield from _cluster(spec["rayClusterSpec"])


def _deletion(spec: Manifest) -> Iterator[str]:
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes and deletionRules exclude each other"
    seconds = dict[tuple[str, str], int]()
    for rule in rules:
        condition = dict(rule["condition"])
        after = condition.pop("ttlSeconds", 0)
        if len(condition) != 1:
            yield "one of jobStatus and jobDeploymentStatus must be set"
        key = (rule["policy"], str(condition))
        if key in seconds:
            yield f"duplicate rule {key}"
        seconds[key] = after
    for (policy, condition_text), after in seconds.items():
        if policy == "DeleteSelf" and after < seconds.get(("DeleteCluster", condition_text), 0):
            yield "DeleteSelf comes before DeleteCluster"


def complaints_of_kueue(manifests: Sequence[Manifest]) -> list[str]:
    """Return the reasons why Kueue would reject a RayJob (kueue main of November 2026, rayjob_webhook.go)."""
    found: list[str] = []
    for job in (m for m in manifests if m["kind"] == "RayJob" and QUEUE in m["metadata"]["labels"]):
        if not job["spec"].get("shutdownAfterJobFinishes"):
            found.append("a kueue managed job should delete the cluster after finishing")
        if job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling"):
            found.append("a kueue managed job should not use autoscaling")
        if len(job["spec"]["rayClusterSpec"]["workerGroupSpecs"]) > WORKER_GROUPS:
            found.append("too many worker groups")
    return found
