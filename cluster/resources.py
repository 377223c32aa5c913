"""What this machine has, learnt without importing torch: CPUs and NVIDIA GPUs, and what can never run here."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InsufficientResources

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
NVIDIA_SMI_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Processors of one machine.

    Attributes:
        cpus: CPUs that this process may use: its affinity, and the container's quota where there is one.
        gpus: NVIDIA GPUs that the driver lists.
    """

    cpus: int
    gpus: int


def this_machine() -> Machine:
    """Return what this machine has; a machine without NVIDIA's driver has no GPU."""
    return Machine(cpus=_cpus(), gpus=_gpus())


def gpus_per_worker(asked: int | str, workers: int, machine: Machine) -> int:
    """Return 0 or 1: what `asked` ("auto", 0 or 1) means here; "auto" takes GPUs when each worker gets one."""
    if asked == "auto":
        return int(machine.gpus >= workers)
    return int(asked)


def refuse_impossible(*, workers: int, gpus_per_worker: int | str, machine: Machine) -> None:
    """Refuse what this machine can never give.

    Raises:
        ResourcesShort: More workers than CPUs, or more GPUs than there are.
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
