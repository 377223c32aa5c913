"""Shared memory of this machine (/dev/shm), through which the loader processes pass batches to a trainer."""

import shutil
from pathlib import Path

from cluster.errors import InsufficientResources

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (the kernel's own)
LEAST_BYTES = 128 * 2**20  # Docker's default of 64 MiB does not hold the batches of two loader processes
CURE = "start the container with --shm-size 8g, or mount an emptyDir with the medium Memory at /dev/shm"


def shared_memory_bytes(folder: Path | None = None) -> int | None:
    """Return the size of /dev/shm; None if there is none."""
    try:
        return shutil.disk_usage(folder or SHARED_MEMORY).total
    except OSError:
        return None


def free_shared_memory() -> int | None:
    """Return the free bytes of /dev/shm; None if there is none."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def require_shared_memory(folder: Path | None = None) -> None:
    """Refuse a run on GPUs where batches do not fit into shared memory: its loaders would die with "Bus error".

    Raises:
        InsufficientResources: /dev/shm is too small.
    """
    size = shared_memory_bytes(folder)
    if size is not None and size < LEAST_BYTES:
        raise InsufficientResources(
            f"{folder or SHARED_MEMORY} has {size >> 20} MiB and loader processes need {LEAST_BYTES >> 20} MiB; {CURE}"
        )
