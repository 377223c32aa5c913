"""The YAML manifests of a RayJob that runs one run on a Ray cluster of its own, for teams whose queue is Kueue.

Pure functions: they read no environment, no storage and no queue, so they work on a laptop without any of them.
"""

import importlib.metadata
import re
from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs.errors import InvalidOption
from jobs.kubernetes.pod_size import OBJECT_STORE_BYTES, RequestedSize, pod_size
from jobs.runs.request import JobRequest
from trainer.specs import Spec

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9_.:/@-]*")
# Kubernetes' rule for the keys of labels and the names of resources, and for the values of labels.
NAME_OF_63 = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
DNS_PREFIX = r"(?=[^/]{1,253}/)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*/"
GPU_RESOURCE = re.compile(DNS_PREFIX + NAME_OF_63)
NODE_LABEL = re.compile(rf"({DNS_PREFIX})?{NAME_OF_63}=({NAME_OF_63})?")
DRIVER_RESOURCE = "nightshift-driver"  # a resource of Ray that only worker pods have
DELETED_AFTER_SECONDS = 24 * 3600.0  # how long the ended RayJob stays, with its submitter's log


@dataclass(frozen=True, kw_only=True)
class RayJobOptions(RequestedSize):
    """The options of the Ray cluster, with the size of its worker pods.

    Attributes:
        image: The image built from k8s/Dockerfile, with its tag.
        namespace: The namespace to which k8s/base was applied.
        queue: Kueue's LocalQueue; with None, KubeRay starts the cluster at once.
        gpu_resource: Resource name of a GPU: nvidia.com/gpu, or a MIG slice such as nvidia.com/mig-1g.10gb.
        queue_priority: Kueue's WorkloadPriorityClass.
        priority_class: PriorityClass of the pods.
        node_labels: Labels, as KEY=VALUE, of the nodes for the worker pods.
        openshift: Leave the user ids to the namespace.
        head_fault_tolerance: Keep the state of Ray's head in Redis and run the entrypoint on a worker pod, so that
            the run goes on while KubeRay replaces a lost head.
        start_seconds: Time until the run must have started after its admission.
        keep_seconds: How long the cluster stays after the run has ended.
    """

    image: str
    namespace: str = "nightshift"
    queue: str | None = None
    gpu_resource: str = "nvidia.com/gpu"
    queue_priority: str | None = None
    priority_class: str | None = None
    node_labels: tuple[str, ...] = ()
    openshift: bool = False
    head_fault_tolerance: bool = False
    start_seconds: float = 3600
    keep_seconds: float = 600

    def __post_init__(self) -> None:
        """Check every value that is written into the YAML text.

        Raises:
            InvalidOption: A name is invalid, a label is repeated, or an option has no effect without another.
        """
        names = "write small letters, digits and -"
        for value, form, what in (
            (self.image, IMAGE, "image; write registry/name:tag in lower case"),
            (self.namespace, DNS_LABEL, f"namespace; {names}"),
            (self.queue or "none", DNS_LABEL, f"queue; {names}"),
            (self.queue_priority or "none", DNS_LABEL, f"queue priority; {names}"),
            (self.priority_class or "none", DNS_LABEL, f"priority class; {names}"),
            (self.gpu_resource, GPU_RESOURCE, "resource name of a GPU; write nvidia.com/gpu"),
            *((label, NODE_LABEL, "label of a node; write KEY=VALUE") for label in self.node_labels),
        ):
            if not form.fullmatch(value):
                raise InvalidOption(f"{value!r} is not a valid {what}")
        if self.queue_priority and not self.queue:
            raise InvalidOption(
                f"--queue-priority {self.queue_priority} has no effect without --queue; add --queue NAME"
            )
        keys = [label.partition("=")[0] for label in self.node_labels]
        if repeated := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise InvalidOption(f"--node-label {repeated[0]} is given {keys.count(repeated[0])} times; give it once")


def ray_job_text(run_id: str, spec: Spec, request: JobRequest, options: RayJobOptions) -> str:
    """Return the manifest of a run: a RayJob that also holds its spec and request, so that all is deleted with it.

    Raises:
        InvalidOption: The spec contains a path that exists only on the submitter's machine, or the run needs more than
            the pods have.
    """
    content = spec.to_json()
    refuse_local_paths(content)
    if content["gpus_per_worker"] == "auto":  # the head node, which would resolve "auto", has no GPU
        content["gpus_per_worker"] = 1
    trials = content.get("concurrency") or 1
    with_gpus = bool(content["gpus_per_worker"])
    size = pod_size(options, workers=content["workers"], trials=trials, with_gpus=with_gpus)
    values: dict[str, Any] = {**asdict(options), "node_labels": dict(label.split("=") for label in options.node_labels)}
    # Escaping is for HTML; here every value was checked or is written as JSON.
    loader = PackageLoader("jobs.kubernetes", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    return environment.get_template("ray_job.yaml.j2").render(
        run_id=run_id,
        spec=content,
        request=request.to_json(),
        size=size,
        object_store=OBJECT_STORE_BYTES,
        driver_resource=DRIVER_RESOURCE,
        deleted_seconds=options.keep_seconds + DELETED_AFTER_SECONDS,
        ray_version=importlib.metadata.version("ray"),
        **values,
    )


def refuse_local_paths(spec: dict[str, Any]) -> None:
    """Refuse relative paths.

    Raises:
        InvalidOption: The shards or the weights are not a path or URL that the cluster can read.
    """
    for name in ("shards", "weights"):
        path = str(spec.get(name, "none"))
        if path not in ("imagenet", "none") and not path.startswith("/") and "://" not in path:
            raise InvalidOption(f"{name} {path} is not a path of the cluster; write it as /storage/... or as a URL")
