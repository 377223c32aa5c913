"""How many threads torch's operations use, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute with one thread when `wanted`.

    A head's matrices are too small to share out: on a free machine one thread is as fast as two, and on a busy one
    the threads wait for each other, 147 ms a step instead of 11 measured on two cores under a load of 8.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
