"""A run as a RayJob: the YAML text that gives it a Ray cluster of its own, for teams whose queue is Kueue.

Pure: reads no environment, no storage and no queue, so that it works on a laptop without any of them.
"""

import importlib.metadata
import re
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs.errors import Refused
from jobs.runs.request import JobRequest
from trainer.specs import Spec

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
IMAGE = re.compile(r"[a-z0-9][\w.:/@-]*")
GPU_RESOURCE = re.compile(r"[a-z0-9.-]+/[A-Za-z0-9._-]+")
MEMORY = re.compile(r"[1-9][0-9]*(Mi|Gi)")


@dataclass(frozen=True, kw_only=True)
class RayJobOptions:
    """What the cluster should look like.

    Attributes:
        image: The image that k8s/Dockerfile makes, with its tag.
        namespace: Where k8s/base was applied.
        queue: Kueue's LocalQueue; None lets KubeRay start at once.
        gpu_resource: What one GPU is called: nvidia.com/gpu, or a MIG slice such as nvidia.com/mig-1g.10gb.
        replicas: Pods with a GPU each; None makes one for each training worker of each trial that runs at once.
        cpus: Cores of each worker.
        memory: Memory of each worker, in Kubernetes' words.
        keep_seconds: How long the cluster stays after the run's end.
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
        """Refuse what would not be the value it stands for in YAML.

        Raises:
            Refused: A name or amount is none.
        """
        for value, form, what in (
            (self.image, IMAGE, "image; write registry/name:tag in lower case"),
            (self.namespace, DNS_LABEL, "namespace; write small letters, digits and -"),
            (self.queue or "none", DNS_LABEL, "queue; write small letters, digits and -"),
            (self.gpu_resource, GPU_RESOURCE, "resource name of a GPU; write nvidia.com/gpu"),
            (self.memory, MEMORY, "amount of memory; write 16Gi"),
        ):
            if not form.fullmatch(value):
                raise Refused(f"{value!r} is no {what}")


def ray_job_text(run_id: str, spec: Spec, request: JobRequest, options: RayJobOptions) -> str:
    """Return the manifests of a run: a ConfigMap with its wish, and the RayJob.

    Raises:
        Refused: The wish names a place that only the machine of the person who types it has.
    """
    wish = spec.to_json()
    refuse_local_places(wish)
    if wish["gpus_per_worker"] == "auto":  # on the head, which would have to decide it, there is no GPU to see
        wish["gpus_per_worker"] = 1
    values: dict[str, Any] = {**vars(options), "gpu": options.gpu_resource if wish["gpus_per_worker"] else None}
    # Escaping is for HTML; here every value was checked or is written as JSON.
    loader = PackageLoader("jobs.kubernetes", ".")
    shape = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    return shape.get_template("ray_job.yaml.j2").render(
        run_id=run_id,
        spec=wish,
        request=request.to_json(),
        pods=options.replicas or wish["workers"] * (wish.get("concurrency") or 1),
        ray_version=importlib.metadata.version("ray"),
        **values,
    )


def refuse_local_places(wish: dict[str, Any]) -> None:
    """Refuse relative paths.

    Raises:
        Refused: The shards or the weights are not named as the cluster sees them.
    """
    for name in ("shards", "weights"):
        place = str(wish.get(name, "none"))
        if place not in ("imagenet", "none") and not place.startswith("/") and "://" not in place:
            raise Refused(f"{name} {place} is no place of the cluster; write it as /storage/... or as a URL")
