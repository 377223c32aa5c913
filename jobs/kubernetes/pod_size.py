"""The number and size of the worker pods of a RayJob."""

import math
import re
from dataclasses import dataclass

from jobs.errors import InvalidOption

GPUS_OF_A_NODE = 8  # the most that usual GPU servers have
CPUS_PER_GPU = 4
GIBIBYTES_PER_GPU = 16
OBJECT_STORE_BYTES = 512 * 2**20  # samples and checkpoints are files
LEAST_MEMORY = 4 * OBJECT_STORE_BYTES  # half of it is /dev/shm, of which the object store takes half
MEMORY = re.compile(r"([1-9][0-9]*)(Mi|Gi)")


@dataclass(frozen=True, kw_only=True)
class RequestedSize:
    """The worker pods that the user asked for; None where the size of the run decides.

    Attributes:
        replicas: Number of pods; None: as many as the run needs.
        gpus_per_pod: GPUs of each pod; None: the workers of a training, divided evenly over as few pods of at most 8
            as possible.
        cpus: CPU cores of each pod; None: 4 for each GPU, 4 without GPUs.
        memory: Memory of each pod as a Kubernetes quantity, such as 32Gi; None: 16Gi for each GPU, 16Gi
            without GPUs.
    """

    replicas: int | None = None
    gpus_per_pod: int | None = None
    cpus: int | None = None
    memory: str | None = None


@dataclass(frozen=True, kw_only=True)
class PodSize:
    """The worker pods of one run.

    Attributes:
        pods: Number of pods.
        gpus: GPUs of each pod; 0 for a run on CPUs.
        cpus: CPU cores of each pod.
        memory_mib: Memory of each pod, in MiB.
    """

    pods: int
    gpus: int
    cpus: int
    memory_mib: int

    @property
    def shared_memory_mib(self) -> int:
        """Size of /dev/shm, which counts as memory of the pod: half of it."""
        return self.memory_mib // 2

    @property
    def units(self) -> int:
        """The size in GPUs, at least 1: what temporary files are scaled by."""
        return max(1, self.gpus)


def pod_size(requested: RequestedSize, *, workers: int, trials: int, with_gpus: bool) -> PodSize:
    """Return the pods for `trials` concurrent trainings of `workers` workers each.

    The workers of one training share as few pods as possible: GPUs of one pod communicate over NVLink or shared memory,
    those of different pods over the network.

    Raises:
        InvalidOption: One training does not fit into the pods, or a pod is too small for Ray.
    """
    total = workers * trials
    if requested.gpus_per_pod is not None and not with_gpus:
        raise InvalidOption(
            f"--gpus-per-pod {requested.gpus_per_pod} does not go with --gpus-per-worker 0; remove one of them"
        )
    gpus = (requested.gpus_per_pod or _gpus(requested.replicas, workers, total)) if with_gpus else 0
    cpus = requested.cpus or CPUS_PER_GPU * max(1, gpus)
    pods = requested.replicas or math.ceil(total / (gpus or 1))
    _require_room(workers, pods, gpus=gpus, cpus=cpus)
    memory = _mebibytes(requested.memory) if requested.memory else GIBIBYTES_PER_GPU * 1024 * max(1, gpus)
    return PodSize(pods=pods, gpus=gpus, cpus=cpus, memory_mib=memory)


def _gpus(replicas: int | None, workers: int, total: int) -> int:
    """Return the GPUs of each pod: of 12 workers 6, in two pods, because two pods of 8 would leave 4 GPUs idle."""
    if replicas is not None:
        return min(GPUS_OF_A_NODE, math.ceil(total / replicas))
    return math.ceil(workers / math.ceil(workers / GPUS_OF_A_NODE))


def _require_room(workers: int, pods: int, *, gpus: int, cpus: int) -> None:
    each, unit, option = (gpus, "GPU", "--gpus-per-pod") if gpus else (cpus, "CPU", "--cpus")
    if pods * each < workers:
        amount = f"{each} {unit}" if each == 1 else f"{each} {unit}s"
        have = f"1 pod of {amount} has" if pods == 1 else f"{pods} pods of {amount} have"
        raise InvalidOption(
            f"{workers} workers need {workers} {unit}s, and {have} {pods * each}; "
            f"use --replicas {math.ceil(workers / each)} or {option} {math.ceil(workers / pods)}"
        )


def _mebibytes(memory: str) -> int:
    match = MEMORY.fullmatch(memory)
    if match is None:
        raise InvalidOption(f"{memory!r} is not a valid amount of memory; write 16Gi")
    found = int(match[1]) * (1024 if match[2] == "Gi" else 1)
    if found * 2**20 < LEAST_MEMORY:
        raise InvalidOption(f"--memory {memory} is too small for a Ray worker; use at least {LEAST_MEMORY >> 30}Gi")
    return found
