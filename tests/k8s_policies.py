"""Rules that every pod must satisfy in every overlay: each policy takes all manifests and returns the violations."""

import re
from collections.abc import Callable, Iterator, Sequence

from cluster.settings import Settings
from tests.k8s_manifests import CLIENTS, ROOT, Manifest, Pod, of_kind, one, pods, ray_clusters
from tests.k8s_quantities import number

Policy = Callable[[Sequence[Manifest]], Iterator[str]]
OUR_IMAGE = "nightshift"
SECRETS = {  # the Secrets that k8s/secrets.sh prints, and those that the README tells users to create for a component
    "redis": {"url", "users.acl", "viewer-url", "scaler-address", "scaler-username", "scaler-password", "ray-password"},
    "ray-token": {"auth_token"},
    "redis-tls": {"ca.crt", "tls.crt", "tls.key"},
    "webhook": {"secret"},
    "dashboard": {"password", "htpasswd"},
    "s3": None,
    "registry": None,
    "team-a-registry": None,  # of the example overlay
}
CREDENTIAL = re.compile(r"://[^/\s:@]*:[^/\s@]+@|PRIVATE KEY|(?i:bearer )\S{8}")
SECRET_NAME = re.compile(r"(?i)password|secret|token|credential|access_key|redis_url")
SECRET_NAMES = {"NIGHTSHIFT_REDIS_URL", "NIGHTSHIFT_WEBHOOK_SECRET"}
OF_A_PERSON = {"NIGHTSHIFT_USER"}  # who submits a run; a pod that several people use cannot state it
NOT_OF_A_RUN = {  # settings of the queue and of the permanent cluster, and those that a RayJob or Ray itself states
    *SECRET_NAMES,
    *OF_A_PERSON,
    "NIGHTSHIFT_REDIS_CA",
    "NIGHTSHIFT_REDIS_ALLOW_PLAIN",
    "NIGHTSHIFT_WEBHOOK_HOSTS",
    "NIGHTSHIFT_RAY_JOBS_URL",
    "NIGHTSHIFT_STORAGE",
    "NIGHTSHIFT_CLUSTER_GPUS",
    "NIGHTSHIFT_RUNS_PER_OWNER",
    "RAY_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
}
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def pods_run_as_nobody(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No root user, no privilege escalation, no access to the host; a user id in all pods or in none (OpenShift)."""
    users = {pod.name: pod.spec.get("securityContext", {}).get("runAsUser") for pod in pods(manifests)}
    if len({user is None for user in users.values()}) != 1:
        yield f"some pods have no user id: {[name for name, user in users.items() if user is None]}"
    for pod in pods(manifests):
        context = pod.spec.get("securityContext", {})
        if not context.get("runAsNonRoot") or users[pod.name] == 0:
            yield f"{pod.name} may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.name} has no seccomp profile"
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(name):
                yield f"{pod.name} shares {name}"
        if any("hostPath" in volume for volume in pod.spec.get("volumes", [])):
            yield f"{pod.name} mounts a folder of the host"
        for container in pod.containers:
            yield from _locked(f"{pod.name}/{container['name']}", container.get("securityContext", {}))
    for cluster in of_kind(manifests, "RayCluster"):
        if cluster["spec"].get("enableInTreeAutoscaling"):
            yield from _locked("autoscaler", cluster["spec"]["autoscalerOptions"].get("securityContext", {}))


def _locked(place: str, context: Manifest) -> Iterator[str]:
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield f"{place} may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{place} keeps capabilities"
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield f"{place} runs as root"
    if not context.get("readOnlyRootFilesystem"):
        yield f"{place} may write to its root"


def namespace_enforces_restricted(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The API server rejects what these policies do not detect."""
    labels = of_kind(manifests, "Namespace")[0]["metadata"]["labels"]
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace does not enforce Pod Security restricted"


def a_read_only_root_has_the_places_that_ray_and_torch_write(manifests: Sequence[Manifest]) -> Iterator[str]:
    """`/tmp` everywhere (home, Ray's session, caches); `/dev/shm` in memory, and inside the memory limit, for Ray."""
    for pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for container in pod.spec["containers"]:
            if container["image"].split(":")[0].split("/")[-1] != OUR_IMAGE:
                continue
            mounts = {m["mountPath"]: m for m in container.get("volumeMounts", []) if not m.get("readOnly")}
            if "emptyDir" not in volumes.get(mounts.get("/tmp", {}).get("name"), {}):
                yield f"{pod.name}/{container['name']} has no /tmp to write to"
            if pod.is_ray:
                shm = volumes.get(mounts.get("/dev/shm", {}).get("name"), {}).get("emptyDir", {})
                yield from _shared_memory(pod, container, shm)
    for cluster in of_kind(manifests, "RayCluster"):
        mounts = cluster["spec"].get("autoscalerOptions", {}).get("volumeMounts", [{"mountPath": "/tmp"}])
        if not any(mount["mountPath"] == "/tmp" for mount in mounts):
            yield "the autoscaler has no /tmp to write to"


def _shared_memory(pod: Pod, container: Manifest, shm: Manifest) -> Iterator[str]:
    if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
        yield f"{pod.name} has no /dev/shm in memory with a limit"
    elif number(shm["sizeLimit"]) > number(container["resources"]["limits"]["memory"]) / 2:
        yield f"{pod.name}: /dev/shm may take more than half of the memory limit"


def resources_are_limited(manifests: Sequence[Manifest]) -> Iterator[str]:
    """CPU and memory have requests and limits; for extended resources both are equal, as Kubernetes requires."""
    for pod in pods(manifests):
        for container in pod.containers:
            place = f"{pod.name}/{container['name']}"
            limits = container.get("resources", {}).get("limits", {})
            requests = container.get("resources", {}).get("requests", {})
            for name in ("cpu", "memory"):
                if name not in limits or name not in requests:
                    yield f"{place} has no request and limit of {name}"
            for name in requests.keys() & limits.keys():
                if number(requests[name]) > number(limits[name]):
                    yield f"{place} asks for more {name} than its limit"
            for name in (n for n in requests.keys() | limits.keys() if "/" in n):
                if requests.get(name) != limits.get(name):
                    yield f"{place}: request and limit of {name} differ"


def no_secret_stands_in_plain_text(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Secret values are references to Secrets that are not in the repository."""
    for manifest in manifests:
        if manifest["kind"] == "Secret":
            yield f"Secret {manifest['metadata']['name']} is among the manifests"
        if CREDENTIAL.search(str(manifest)):
            yield f"{manifest['kind']} {manifest['metadata']['name']} holds a credential"
    for pod in pods(manifests):
        for variable in (v for container in pod.containers for v in container.get("env", [])):
            by_path = variable["name"].endswith("_PATH") or str(variable.get("value", "")).startswith("/")
            if SECRET_NAME.search(variable["name"]) and "value" in variable and not by_path:
                yield f"{pod.name}: {variable['name']} stands in plain text"
    for config in of_kind(manifests, "ConfigMap"):
        yield from (f"ConfigMap: {name} is a secret" for name in config["data"] if name == "NIGHTSHIFT_REDIS_URL")


def secrets_and_keys_are_those_that_exist(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every reference names a Secret and a key that `k8s/secrets.sh` creates or the README tells users to create."""
    for pod in pods(manifests):
        for name, key in _secret_references(pod):
            if name not in SECRETS:
                yield f"{pod.name} wants the unknown Secret {name}"
            elif key and SECRETS[name] is not None and key not in (SECRETS[name] or ()):
                yield f"{pod.name} wants the unknown key {key} of the Secret {name}"


def _secret_references(pod: Pod) -> Iterator[tuple[str, str | None]]:
    for volume in pod.spec.get("volumes", []):
        if secret := volume.get("secret"):
            yield from ((secret["secretName"], item["key"]) for item in secret.get("items", [{"key": None}]))
    for container in pod.containers:
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield reference["name"], reference["key"]
        yield from ((s["secretRef"]["name"], None) for s in container.get("envFrom", []) if "secretRef" in s)
    yield from ((secret["name"], None) for secret in pod.spec.get("imagePullSecrets", []))


def volumes_and_mounts_match(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Each mount has a volume, each volume is mounted, each claim and ConfigMap is among the manifests."""
    claims = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "PersistentVolumeClaim")}
    configs = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "ConfigMap")}
    templates = {
        set_["metadata"]["name"]: {claim["metadata"]["name"] for claim in set_["spec"].get("volumeClaimTemplates", [])}
        for set_ in of_kind(manifests, "StatefulSet")
    }
    for pod in pods(manifests):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | templates.get(pod.name, set())
        mounted = {m["name"] for container in pod.containers for m in container.get("volumeMounts", [])}
        if volumes != mounted:
            yield f"{pod.name}: volumes and mounts differ: {sorted(volumes ^ mounted)}"
        for volume in pod.spec.get("volumes", []):
            if volume.get("persistentVolumeClaim", {}).get("claimName", "") not in {"", *claims}:
                yield f"{pod.name} wants an unknown claim"
            if volume.get("configMap", {}).get("name", "") not in {"", *configs}:
                yield f"{pod.name} mounts an unknown ConfigMap"
        for source in (s for container in pod.containers for s in container.get("envFrom", [])):
            if source.get("configMapRef", {}).get("name", "") not in {"", *configs}:
                yield f"{pod.name} reads an unknown ConfigMap"


def runs_of_both_kinds_read_the_same_settings(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The ConfigMap that RayJobs read has the values of the permanent cluster, and a name without a hash."""
    found = [m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] == "nightshift-settings"]
    data, other = one(manifests, "ConfigMap", "nightshift")["data"], found[0]["data"] if found else {}
    missing = {n for n in names_settings_reads() - NOT_OF_A_RUN if other.get(n) != data.get(n) or n not in other}
    if missing:
        yield f"RayJobs do not get the settings {sorted(missing)}"


def environment_is_what_settings_reads(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The code reads each NIGHTSHIFT_ variable; clients have all addresses; Ray's pods do not have the password."""
    data = one(manifests, "ConfigMap", "nightshift")["data"]
    yield from (f"ConfigMap: nobody reads {name}" for name in sorted(data.keys() - names_settings_reads()))
    for pod in pods(manifests):
        for container in (c for c in pod.spec["containers"] if "envFrom" in c):
            own = {variable["name"] for variable in container.get("env", [])}
            yield from (f"{pod.name}: nobody reads {n}" for n in own if _is_unknown(n))
            if pod.labels["app.kubernetes.io/component"] in CLIENTS and not own >= SECRET_NAMES:
                yield f"{pod.name} lacks {sorted(SECRET_NAMES - own)}"
            if pod.is_ray and own & SECRET_NAMES:
                yield f"{pod.name} has no business with {sorted(SECRET_NAMES & own)}"
    needed = {name for name in names_settings_reads() - SECRET_NAMES - OF_A_PERSON if name.startswith("NIGHTSHIFT_")}
    yield from (f"ConfigMap lacks {name}" for name in sorted(needed - data.keys()))
    most = sum(
        _gpus(group) for cluster in of_kind(manifests, "RayCluster") for group in cluster["spec"]["workerGroupSpecs"]
    )
    if data.get("NIGHTSHIFT_CLUSTER_GPUS") != str(most):
        yield f"the cluster can have {most} GPUs and the ConfigMap says {data.get('NIGHTSHIFT_CLUSTER_GPUS')}"


def _gpus(group: Manifest) -> int:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return int(group["maxReplicas"] * sum(number(limits[name]) for name in limits if name.startswith("nvidia.com/")))


def _is_unknown(name: str) -> bool:
    return name.startswith("NIGHTSHIFT_") and name not in names_settings_reads()


def names_settings_reads() -> set[str]:
    """Return the names of the variables that `Settings.read` reads, by recording its calls."""
    asked: set[str] = set()

    class Watched(dict[str, str]):
        def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
            asked.add(name)
            return default

    Settings.read(Watched())
    return asked


def drains_end_before_pods_are_killed(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The grace period is longer than Ray's drain and than the job worker's."""
    for pod in pods(manifests):
        variables = {v["name"]: v.get("value", "") for c in pod.spec["containers"] for v in c.get("env", [])}
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if pod.is_ray and DRAIN not in variables:
            yield f"{pod.name} does not say how long it drains"
        if pod.is_ray and grace < float(variables.get(DRAIN) or 0) + 15:
            yield f"{pod.name} is killed before its drain is over"
        if pod.labels["app.kubernetes.io/component"] == "job-worker" and grace < 150:
            yield f"{pod.name} is killed before it has handed its run back"


def images_are_pinned_and_ours_is_one(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Nightshift has one image with one tag; no image is without a tag or has the tag latest."""
    images = {container["image"] for pod in pods(manifests) for container in pod.containers}
    for image in sorted(images):
        if re.fullmatch(r".+:[\w.-]+|.+@sha256:[0-9a-f]{64}", image) is None or image.endswith(":latest"):
            yield f"image {image} is not pinned"
    if len({image for image in images if image.split("/")[-1].startswith(f"{OUR_IMAGE}:")}) != 1:
        yield f"our image has several tags: {sorted(images)}"


def only_the_autoscaler_holds_a_service_account_token(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A pod that does not use the API server has no token for it."""
    for pod in pods(manifests):
        is_head = pod.labels.get("ray.io/node-type") == "head"
        if pod.spec.get("automountServiceAccountToken") is not False and not is_head:
            yield f"{pod.name} mounts a service account token"
        if is_head and pod.spec.get("automountServiceAccountToken") is False:
            yield f"{pod.name}: the autoscaler cannot ask the API server"


def the_head_only_coordinates(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Ray schedules no work on the head, and `rayVersion` is the installed version."""
    pinned = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    for cluster in of_kind(manifests, "RayCluster"):
        if cluster["spec"]["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
            yield "the head offers CPUs"
        if pinned is None or cluster["spec"].get("rayVersion") != pinned[1].rstrip(" \\"):
            yield f"rayVersion is not requirements.lock's {pinned and pinned[1]}"
        if cluster["spec"].get("authOptions", {}).get("mode") != "token":
            yield "an open Ray port runs anybody's code"


def storage_is_one_folder_for_all(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Clients and Ray mount the same claim at the path in NIGHTSHIFT_STORAGE."""
    place = one(manifests, "ConfigMap", "nightshift")["data"].get("NIGHTSHIFT_STORAGE")
    for pod in pods(manifests):
        if not pod.is_ray and pod.labels["app.kubernetes.io/component"] not in CLIENTS:
            continue
        claims = {
            v["name"] for v in pod.spec["volumes"] if v.get("persistentVolumeClaim", {}).get("claimName") == "storage"
        }
        mounts = [m for m in pod.spec["containers"][0]["volumeMounts"] if m["name"] in claims]
        if [(mount["mountPath"], mount.get("readOnly", False)) for mount in mounts] != [(place, False)]:
            yield f"{pod.name} does not have the storage at {place}"


def the_object_store_fits_into_shared_memory(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Ray uses a folder on disk if its object store is larger than `/dev/shm`."""
    for cluster in ray_clusters(manifests):
        for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
            shm = next(v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shm")
            store = group["rayStartParams"].get("object-store-memory", "1Ti")
            if number(store) > number(shm.get("sizeLimit", 0)) / 2:
                yield f"an object store of {store} bytes leaves no room in /dev/shm"


POLICIES: tuple[Policy, ...] = (
    pods_run_as_nobody,
    namespace_enforces_restricted,
    a_read_only_root_has_the_places_that_ray_and_torch_write,
    resources_are_limited,
    no_secret_stands_in_plain_text,
    secrets_and_keys_are_those_that_exist,
    volumes_and_mounts_match,
    environment_is_what_settings_reads,
    runs_of_both_kinds_read_the_same_settings,
    drains_end_before_pods_are_killed,
    images_are_pinned_and_ours_is_one,
    only_the_autoscaler_holds_a_service_account_token,
    the_head_only_coordinates,
    storage_is_one_folder_for_all,
    the_object_store_fits_into_shared_memory,
)
