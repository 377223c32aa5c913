"""How much of this machine's GPUs is used at a moment, as nvidia-smi (NVML) measures it."""

import subprocess
from dataclasses import dataclass

from cluster.gpus import query

FIELDS = "index,name,utilization.gpu,memory.used,memory.total"
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """One measurement of a GPU.

    Attributes:
        index: Its number on this machine.
        name: Name of the card.
        utilization: Part of the last moments in which a kernel ran, 0 to 1; None if the card does not say it (MIG).
        used_bytes: Its memory in use, of all processes.
        memory_bytes: Its memory.
    """

    index: int
    name: str
    utilization: float | None
    used_bytes: int
    memory_bytes: int


def gpu_use() -> tuple[GpuUse, ...]:
    """Return the use of all GPUs of this machine; none without a driver, or if it does not answer."""
    try:
        answer = query(FIELDS)
    except (subprocess.TimeoutExpired, OSError):
        return ()
    found = map(_parsed, answer.stdout.splitlines() if answer.returncode == 0 else [])
    return tuple(one for one in found if one is not None)


def _parsed(line: str) -> GpuUse | None:
    """Return a line of the answer; None if its memory is unknown, as for a GPU that has failed."""
    words = [word.strip() for word in line.split(",")]
    try:
        index, name, utilization, used, memory = words
        return GpuUse(
            index=int(index),
            name=name,
            utilization=int(utilization) / 100 if utilization.isdecimal() else None,
            used_bytes=int(used) * MEBIBYTE,
            memory_bytes=int(memory) * MEBIBYTE,
        )
    except ValueError:
        return None
