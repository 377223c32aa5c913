"""CPUs and NVIDIA GPUs of this machine, found without importing torch; refuses runs that need more."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InsufficientResources

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
NVIDIA_SMI_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """CPUs and GPUs of one machine.

    Attributes:
        cpus: CPUs that this process may use, from its affinity and the container's CPU quota.
        gpus: NVIDIA GPUs that the driver lists.
    """

    cpus: int
    gpus: int


def this_machine() -> Machine:
    """Return the CPUs and GPUs of this machine; without the NVIDIA driver there are no GPUs."""
    return Machine(cpus=_cpus(), gpus=_gpus())


def gpus_per_worker(requested: int | str, workers: int, machine: Machine) -> int:
    """Return 0 or 1 for `requested` ("auto", 0 or 1); "auto" is 1 if the machine has a GPU for each worker."""
    if requested == "auto":
        return int(machine.gpus >= workers)
    return int(requested)


def refuse_impossible(*, workers: int, gpus_per_worker: int | str, machine: Machine) -> None:
    """Refuse a run that needs more than this machine has.

    Raises:
        InsufficientResources: There are fewer CPUs than workers, or fewer GPUs than the workers need.
    """
    if gpus_per_worker == 1 and workers > machine.gpus:
        cure = f"use --workers {machine.gpus}" if machine.gpus else "use --gpus-per-worker 0"
        raise InsufficientResources(
            f"{workers} workers need {workers} GPUs and this machine has {machine.gpus}; {cure}"
        )
    if workers > machine.cpus:
        raise InsufficientResources(
            f"{workers} workers need {workers} CPUs and this machine has {machine.cpus}; use --workers {machine.cpus}"
        )


def _cpus() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_CPU_MAX.read_text().split()
    except (OSError, ValueError):
        return available
    return available if quota == "max" else max(1, min(available, round(int(quota) / int(period))))


def _gpus() -> int:
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(answer.stdout.split()) if answer.returncode == 0 else 0
