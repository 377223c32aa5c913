"""The YAML manifests of a RayJob that runs one run on a Ray cluster of its own, for teams whose queue is Kueue.

Pure functions: they read no environment, no storage and no queue, so they work on a laptop without any of them.
"""

import importlib.metadata
import re
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs.errors import InvalidOption
from jobs.runs.request import JobRequest
from trainer.specs import Spec

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
IMAGE = re.compile(r"[a-z0-9][\w.:/@-]*")
GPU_RESOURCE = re.compile(r"[a-z0-9.-]+/[A-Za-z0-9._-]+")
MEMORY = re.compile(r"[1-9][0-9]*(Mi|Gi)")


@dataclass(frozen=True, kw_only=True)
class RayJobOptions:
    """The options of the Ray cluster.

    Attributes:
        image: The image built from k8s/Dockerfile, with its tag.
        namespace: The namespace to which k8s/base was applied.
        queue: Kueue's LocalQueue; with None, KubeRay starts the cluster at once.
        gpu_resource: Resource name of a GPU: nvidia.com/gpu, or a MIG slice such as nvidia.com/mig-1g.10gb.
        replicas: Pods with one GPU each; None means one per training worker of each concurrent trial.
        cpus: CPU cores of each pod.
        memory: Memory of each pod as a Kubernetes quantity, such as 16Gi.
        keep_seconds: How long the cluster stays after the run has ended.
    """

    image: str
    namespace: str = "nightshift"
    queue: str | None = None
    gpu_resource: str = "nvidia.com/gpu"
    replicas: int | None = None
    cpus: int = 4
    memory: str = "16Gi"
    keep_seconds: float = 600

    def __post_init__(self) -> None:
        """Check every value that is written into the YAML text.

        Raises:
            InvalidOption: A name or an amount is invalid.
        """
        for value, form, what in (
            (self.image, IMAGE, "image; write registry/name:tag in lower case"),
            (self.namespace, DNS_LABEL, "namespace; write small letters, digits and -"),
            (self.queue or "none", DNS_LABEL, "queue; write small letters, digits and -"),
            (self.gpu_resource, GPU_RESOURCE, "resource name of a GPU; write nvidia.com/gpu"),
            (self.memory, MEMORY, "amount of memory; write 16Gi"),
        ):
            if not form.fullmatch(value):
                raise InvalidOption(f"{value!r} is not a valid {what}")


def ray_job_text(run_id: str, spec: Spec, request: JobRequest, options: RayJobOptions) -> str:
    """Return the manifests of a run: a ConfigMap with its spec and request, and the RayJob.

    Raises:
        InvalidOption: The spec contains a path that exists only on the submitter's machine.
    """
    content = spec.to_json()
    refuse_local_paths(content)
    if content["gpus_per_worker"] == "auto":  # the head node, which would resolve "auto", has no GPU
        content["gpus_per_worker"] = 1
    values: dict[str, Any] = {**vars(options), "gpu": options.gpu_resource if content["gpus_per_worker"] else None}
    # Escaping is for HTML; here every value was checked or is written as JSON.
    loader = PackageLoader("jobs.kubernetes", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    return environment.get_template("ray_job.yaml.j2").render(
        run_id=run_id,
        spec=content,
        request=request.to_json(),
        pods=options.replicas or content["workers"] * (content.get("concurrency") or 1),
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
