"""What the values of the Helm chart change in its templates."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from k8s.variants import MISSING, Branch, Fields, Items, Literal, Missing, Node, Override

K8S = Path(__file__).resolve().parent
SIZES = ("gpu-small", "gpu-large", "kind")
COMPONENTS = {  # in the order in which an overlay lists them -> the name among the values
    **{name: name for name in ("keda", "dashboard", "ingress", "prometheus", "dcgm", "tls", "s3", "airgap", "mig")},
    "time-slicing": "timeSlicing",
    **{name: name for name in ("kueue", "quota", "rayjobs", "rdma", "openshift")},
}
CLUSTER_OBJECTS = "cluster-objects"  # a switch of the chart alone: two releases cannot own the same object
CLUSTER_KINDS = ("ClusterQueue", "PriorityClass", "ResourceFlavor")
KEEP = {"helm.sh/resource-policy": "keep"}
CONDITIONS = {
    **{size: f'eq .Values.size "{size}"' for size in SIZES},
    **{name: f".Values.components.{value}" for name, value in COMPONENTS.items()},
    "ingress": ".Values.ingress.host",
    CLUSTER_OBJECTS: ".Values.clusterObjects",
}
IMAGES = {"nightshift": "nightshift", "redis": "valkey/valkey", "nginx": "nginxinc/nginx-unprivileged"}
NAMESPACE = "RELEASE-NAMESPACE"
# ConfigMap -> the text that stands for its checksum. It is an annotation of the pods that read the ConfigMap alone.
CHECKSUMS = {name: f"CHECKSUM-OF-{name.upper()}" for name in ("nightshift", "redis", "dashboard")}
READERS = {("StatefulSet", "redis"): "redis", ("Deployment", "dashboard"): "dashboard"}  # all others read `nightshift`
SENTINELS = {
    NAMESPACE: "{{ .Release.Namespace }}",
    **{
        checksum: f'{{{{ include (print $.Template.BasePath "/config-{name}.yaml") . | sha256sum }}}}'
        for name, checksum in CHECKSUMS.items()
    },
    "nightshift.example.org": "{{ .Values.ingress.host }}",
    **{f"{name.upper()}-IMAGE": f"{{{{ .Values.images.{name}.name }}}}" for name in IMAGES},
    **{f"{name.upper()}-TAG": f"{{{{ .Values.images.{name}.tag }}}}" for name in IMAGES},
}
SETTINGS = (
    *re.findall(r"^([A-Z_]+)=", (K8S / "base" / "settings.env").read_text(), re.MULTILINE),
    "NIGHTSHIFT_RUNS_PER_OWNER",
    "NIGHTSHIFT_WEBHOOK_HOSTS",
)
GPU, SLICE = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
GROUP = ("spec", "workerGroupSpecs", 0)
WORKER = (*GROUP, "template", "spec")
RESOURCES = (*WORKER, "containers", 0, "resources")
HEAD = ("spec", "headGroupSpec", "template", "spec", "containers", 0, "resources")
CONTROLLER = ("spec", "ingress", 0, "from", 0, "namespaceSelector", "matchLabels")
QUOTA = ("spec", "resourceGroups", 0, "flavors", 0, "resources")
TEMPLATES: dict[str, tuple[tuple[str | int, ...], ...]] = {
    "Deployment": (("spec", "template"),),
    "StatefulSet": (("spec", "template"),),
    "CronJob": (("spec", "jobTemplate", "spec", "template"),),
    "ScaledJob": (("spec", "jobTargetRef", "template"),),
    "RayCluster": (("spec", "headGroupSpec", "template"), (*GROUP, "template")),
}
RESIZED = "or .Values.workers.maxReplicas .Values.workers.gpus"
ALL_GPUS = '{{ include "nightshift.clusterGpus" . | quote }}'
PULLED = (
    "or .Values.pullSecret .Values.components.airgap",
    '[{name: {{ .Values.pullSecret | default "registry" | quote }} }]',
)
FieldPath = Sequence[str | int]
Change = Callable[[Node], Node]


def number(value: str) -> tuple[str, str]:
    """Return the condition and the template of a number among the values."""
    return f".Values.{value}", f"{{{{ .Values.{value} | int }}}}"


def text(value: str) -> tuple[str, str]:
    """Return the condition and the template of a text among the values."""
    return f".Values.{value}", f"{{{{ .Values.{value} | quote }}}}"


def block(value: str) -> tuple[str, str]:
    """Return the condition and the template of a mapping among the values."""
    return f".Values.{value}", f"{{{{- toYaml .Values.{value} | nindent INDENT }}}}"


def quota_of(resource: str) -> tuple[str, str]:
    """Return the condition and the template of the number of GPUs that the quota grants."""
    without = "" if resource == SLICE else "not "
    return f"and ({without}.Values.components.mig) ({RESIZED})", ALL_GPUS


# Object -> the fields that values replace, and those that they add.
REPLACED: dict[tuple[str, str], list[tuple[FieldPath, tuple[str, str]]]] = {
    ("Deployment", "job-worker"): [
        (("spec", "replicas"), number("jobWorkers.replicas")),
        (("spec", "template", "spec", "containers", 0, "resources"), block("jobWorkers.resources")),
    ],
    ("ScaledJob", "job-worker"): [
        (("spec", "maxReplicaCount"), number("jobWorkers.replicas")),
        (("spec", "jobTargetRef", "template", "spec", "containers", 0, "resources"), block("jobWorkers.resources")),
    ],
    ("RayCluster", "ray"): [
        ((*GROUP, "maxReplicas"), number("workers.maxReplicas")),
        *(
            ((*GROUP, name), (f"and .Values.components.kueue {condition}", template))
            for condition, template in [number("workers.maxReplicas")]
            for name in ("replicas", "minReplicas")
        ),
        *(((*RESOURCES, side, GPU), number("workers.gpus")) for side in ("requests", "limits")),
        *(
            ((*RESOURCES, side, name), text(f"workers.{side}.{value}"))
            for side in ("requests", "limits")
            for name, value in (("cpu", "cpu"), ("memory", "memory"), ("ephemeral-storage", "ephemeralStorage"))
        ),
        ((*WORKER, "volumes", 1, "emptyDir", "sizeLimit"), text("workers.sharedMemory")),
        (HEAD, block("head.resources")),
        (("metadata", "annotations", "nightshift/quota-cpu"), text("quota.cpu")),
        (("metadata", "annotations", "nightshift/quota-memory"), text("quota.memory")),
        (("metadata", "annotations", "nightshift/quota-ephemeral-storage"), text("quota.ephemeralStorage")),
        (("metadata", "annotations", "nightshift/quota-gpu"), quota_of(GPU)),
        (("metadata", "annotations", "nightshift/quota-mig"), quota_of(SLICE)),
    ],
    ("ClusterQueue", "nightshift"): [
        ((*QUOTA, "cpu", "nominalQuota"), text("quota.cpu")),
        ((*QUOTA, "memory", "nominalQuota"), text("quota.memory")),
        ((*QUOTA, "ephemeral-storage", "nominalQuota"), text("quota.ephemeralStorage")),
        ((*QUOTA, GPU, "nominalQuota"), quota_of(GPU)),
        ((*QUOTA, SLICE, "nominalQuota"), quota_of(SLICE)),
    ],
    ("ResourceQuota", "nightshift"): [
        (("spec", "hard", f"requests.{GPU}"), quota_of(GPU)),
        (("spec", "hard", f"requests.{SLICE}"), quota_of(SLICE)),
    ],
    ("PersistentVolumeClaim", "storage"): [(("spec", "resources", "requests", "storage"), text("storage.size"))],
    ("StatefulSet", "redis"): [
        (("spec", "volumeClaimTemplates", 0, "spec", "resources", "requests", "storage"), text("redisStorage.size"))
    ],
    ("ConfigMap", "nightshift"): [
        (("data", "NIGHTSHIFT_CLUSTER_GPUS"), (f"and (not .Values.components.rayjobs) ({RESIZED})", ALL_GPUS))
    ],
    ("Ingress", "dashboard"): [(("spec", "ingressClassName"), text("ingress.className"))],
    ("NetworkPolicy", "dashboard"): [((*CONTROLLER, "kubernetes.io/metadata.name"), text("ingress.namespace"))],
}
MONITORS = (
    ("PodMonitor", ("nightshift", "ray", "dcgm-exporter")),
    ("PrometheusRule", ("nightshift", "nightshift-gpus")),
)
ADDED: dict[tuple[str, str], list[tuple[FieldPath, tuple[str, str]]]] = {
    ("PersistentVolumeClaim", "storage"): [(("spec", "storageClassName"), text("storage.class"))],
    ("StatefulSet", "redis"): [
        (("spec", "volumeClaimTemplates", 0, "spec", "storageClassName"), text("redisStorage.class"))
    ],
    **{(kind, name): [(("metadata", "labels"), block("monitorLabels"))] for kind, names in MONITORS for name in names},
}


def overridden(kind: str, name: str, tree: Node) -> Node:
    """Return the tree of an object with the Helm values that change it."""
    for path, (condition, template) in _replaced(kind, name):
        tree = changed(tree, path, lambda node, c=condition, t=template: _over(c, t, node))  # type: ignore[misc]
    for path, (condition, template) in ADDED.get((kind, name), []):
        tree = changed(tree, path, lambda _, c=condition, t=template: Override(c, t, MISSING))  # type: ignore[misc]
    for template_path in TEMPLATES.get(kind, ()):
        secret = Override(*PULLED, MISSING)
        tree = changed(tree, (*template_path, "spec", "imagePullSecrets"), lambda _, s=secret: s)  # type: ignore[misc]
        if kind != "CronJob":  # its next pod reads the ConfigMap anew
            annotation = (*template_path, "metadata", "annotations", "checksum/config")
            checksum = Literal(CHECKSUMS[READERS.get((kind, name), "nightshift")])
            tree = changed(tree, annotation, lambda _, c=checksum: c)  # type: ignore[misc]
    if (kind, name) == ("PersistentVolumeClaim", "storage"):  # `helm uninstall` must not delete models and shards
        return changed(tree, ("metadata", "annotations"), lambda _: Literal(KEEP))
    if kind in CLUSTER_KINDS:  # nor what the releases of other teams use
        return Branch(CLUSTER_OBJECTS, changed(tree, ("metadata", "annotations"), lambda _: Literal(KEEP)), MISSING)
    return tree


def _replaced(kind: str, name: str) -> Iterator[tuple[FieldPath, tuple[str, str]]]:
    yield from REPLACED.get((kind, name), [])
    if kind == "ConfigMap" and name in ("nightshift", "nightshift-settings"):
        for setting in SETTINGS:
            template = f'{{{{ index .Values.settings "{setting}" | quote }}}}'
            yield ("data", setting), (f'hasKey .Values.settings "{setting}"', template)


def _over(condition: str, template: str, node: Node) -> Node:
    return node if isinstance(node, Missing) else Override(condition, template, node)


def changed(node: Node, path: FieldPath, change: Change) -> Node:
    """Return a copy of a tree in which the node at a path is changed, in each branch that has its parent."""
    if not path and not _may_be_missing(node):
        return change(node)
    if isinstance(node, Branch):
        return Branch(node.switch, changed(node.on, path, change), changed(node.off, path, change))
    if not path:
        return change(node)
    step, rest, opened = path[0], path[1:], _opened(node)
    if isinstance(opened, Fields) and (step in opened.fields or not rest):
        before = opened.fields.get(str(step), MISSING)
        return Fields({**opened.fields, str(step): changed(before, rest, change)})
    if isinstance(opened, Items):
        chosen = [step in (place, name_of(item)) for place, item in enumerate(opened.items)]
        pairs = zip(opened.items, chosen, strict=True)
        return Items([changed(item, rest, change) if is_it else item for item, is_it in pairs])
    return node


def _opened(node: Node) -> Node:
    """Return a literal mapping or list as a node with fields or items."""
    if isinstance(node, Literal) and isinstance(node.value, dict):
        return Fields({name: Literal(value) for name, value in node.value.items()})
    if isinstance(node, Literal) and isinstance(node.value, list):
        return Items([Literal(item) for item in node.value])
    return node


def _may_be_missing(node: Node) -> bool:
    """Whether some branch of a node, but not all, is missing."""
    return isinstance(node, Branch) and (_has_missing(node.on) or _has_missing(node.off))


def _has_missing(node: Node) -> bool:
    return isinstance(node, Missing) or _may_be_missing(node)


def name_of(node: Node) -> str | None:
    """Return the name of an item of a list."""
    match node:
        case Branch(_, on, off):
            return name_of(on) or name_of(off)
        case Literal(value) if isinstance(value, dict):
            return value.get("name")
        case Fields(fields):
            name = fields.get("name", MISSING)
            return str(name.value) if isinstance(name, Literal) else None
    return None


def helpers(ray: Node) -> str:
    """Return the helper templates: the number of GPUs of the cluster, from values and from the size."""
    if (
        isinstance(ray, Branch) and ray.switch == "rayjobs"
    ):  # without the cluster, the quota of RayJobs is that of the size
        ray = ray.off
    replicas, gpus = _at(ray, (*GROUP, "maxReplicas")), _at(ray, (*RESOURCES, "limits", GPU))
    lines = [
        '{{- define "nightshift.maxReplicas" -}}',
        f"{{{{- if .Values.workers.maxReplicas }}}}{{{{ .Values.workers.maxReplicas | int }}}}{{{{ else }}}}"
        f"{_inline(replicas)}{{{{ end }}}}",
        "{{- end }}",
        '{{- define "nightshift.gpus" -}}',
        f"{{{{- if .Values.components.mig }}}}1{{{{ else if .Values.workers.gpus }}}}"
        f"{{{{ .Values.workers.gpus | int }}}}{{{{ else }}}}{_inline(gpus)}{{{{ end }}}}",
        "{{- end }}",
        '{{- define "nightshift.clusterGpus" -}}',
        '{{ mul (include "nightshift.maxReplicas" . | int) (include "nightshift.gpus" . | int) }}',
        "{{- end }}",
    ]
    return "\n".join(lines) + "\n"


def _at(node: Node, path: FieldPath) -> Node:
    """Return the node at a path, with the branches on the way."""
    if isinstance(node, Branch):
        return Branch(node.switch, _at(node.on, path), _at(node.off, path))
    if not path:
        return node
    opened = _opened(node)
    if isinstance(opened, Fields):
        return _at(opened.fields.get(str(path[0]), MISSING), path[1:])
    return _at(opened.items[int(path[0])], path[1:]) if isinstance(opened, Items) else MISSING


def _inline(node: Node) -> str:
    match node:
        case Branch(switch, on, off):
            return f"{{{{ if {CONDITIONS[switch]} }}}}{_inline(on)}{{{{ else }}}}{_inline(off)}{{{{ end }}}}"
        case Literal(value):
            return str(value)
    return "0"
