"""Releases the GPUs that runs in the process of the tests have leased."""

import os

from trainer.distributed import local_gpus

VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")  # before the first run


def release_gpus(visible: str | None = VISIBLE) -> None:
    """Release all leases of this process, and show `visible`, the value of `CUDA_VISIBLE_DEVICES` before them.

    A trainer is a process of its own, which keeps its leases until it ends. Here one process trains for one test after
    another, and the trainers that a test starts would wait for the GPUs that it holds.
    """
    for lease in local_gpus._held.leases:
        lease.release()
    local_gpus._held = local_gpus._Held()
    if visible is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
