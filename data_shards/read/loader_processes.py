"""How many processes decode batches, and how far ahead, so that their batches fit into shared memory (/dev/shm)."""

import logging
import math
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import get_worker_info

from data_shards.errors import SharedMemoryFull

IMAGES_PER_START = 128  # decoded by one process in the time in which another one starts and ends: about 60 ms

logger = logging.getLogger(__name__)


def processes_for(images: int, *, most: int) -> int:
    """Return how many processes decode so many images, read once, in the shortest time; 0 for a few images.

    They start one after another, and then share the images: `n` of them take `n * start + images / n * decode` seconds.
    """
    return min(most, math.isqrt(images // IMAGES_PER_START))


@dataclass(frozen=True)
class LoaderProcesses:
    """Processes that decode batches for one consumer.

    Attributes:
        count: Number of processes; 0 decodes in the process that uses the batches.
        prefetch: Batches that each has ready.
    """

    count: int
    prefetch: int

    @property
    def prefetch_factor(self) -> int | None:
        """As torch's DataLoader takes it."""
        return self.prefetch if self.count else None

    def within(self, limit_bytes: int | None, *, batch_bytes: int) -> "LoaderProcesses":
        """Return as many of them as fit; where not even three batches fit into the limit, none, with a warning.

        Besides the batches that are ready, one is in use and one is handed over.

        Args:
            limit_bytes: Shared memory that their batches may fill; None is no limit.
            batch_bytes: Size of the largest batch.
        """
        if not self.count or not batch_bytes or limit_bytes is None:
            return self
        ready = limit_bytes // batch_bytes - 2
        if ready < 1:
            logger.warning(
                "images are decoded without loader processes, which is slow: three batches of %.1f MB do not fit into "
                "the %.1f MB of shared memory for them; give the container more (--shm-size)",
                *(batch_bytes / 1e6, limit_bytes / 1e6),
            )
            return LoaderProcesses(0, self.prefetch)
        count = min(self.count, ready)
        return LoaderProcesses(count, min(self.prefetch, ready // count))


def share(*tensors: Tensor) -> None:
    """Move tensors into shared memory, in a loader process; elsewhere do nothing.

    The DataLoader would do it later, in a thread whose errors end nothing: its consumer would wait for ever.

    Raises:
        SharedMemoryFull: They do not fit.
    """
    if get_worker_info() is None:
        return
    try:
        for tensor in tensors:
            tensor.share_memory_()  # type: ignore[no-untyped-call]  # untyped in torch
    except RuntimeError as error:
        raise SharedMemoryFull(
            "shared memory (/dev/shm) is full, so that loader processes cannot pass on images; free it: `df /dev/shm` "
            "and `ls -l /dev/shm` show what uses it, or give the container more (--shm-size)"
        ) from error
