"""Waits until a Ray cluster has room for the workers of a run, and asks its autoscaler for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.errors import InsufficientResources
from cluster.gpu_lease import waiting_text

POLL_SECONDS = 2.0
PLACED = 0.5  # the first look lasts so long: a cluster with room answers at once, and then there is no wait to see


def wait_for_room(
    workers: int,
    gpus: int,
    on_wait: Callable[[str], None],
    *,
    limit_seconds: float,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until the connected Ray cluster can start so many workers at the same time.

    The workers' resources are reserved as one placement group, which makes an autoscaler add machines, and released
    again: Ray Train then reserves them itself.

    Args:
        workers: Number of workers.
        gpus: GPUs of each worker, 0 or 1; a worker without one needs a CPU.
        on_wait: Called every few seconds with what is waited for, such as "waiting for 16 GPUs (8 free)"; what it
            raises ends the wait.
        limit_seconds: Longest time to wait.
        now: Monotonic clock, in seconds.

    Raises:
        InsufficientResources: There was no room for the whole time.
    """
    resource = "GPU" if gpus else "CPU"
    until = now() + limit_seconds
    with _reservation([{resource: 1.0}] * workers) as reserved:
        placed = reserved.wait(PLACED)
        while not placed:
            text = waiting_text(workers, _free(resource), resource)
            if now() >= until:
                raise InsufficientResources(
                    f"the run was {text} of the Ray cluster for {limit_seconds:g} s; see `ray status` for what uses "
                    "them, use fewer --workers or --min-workers, or raise NIGHTSHIFT_GPU_WAIT_SECONDS"
                )
            on_wait(text)
            placed = reserved.wait(POLL_SECONDS)


def _free(resource: str) -> int:
    return int(ray.available_resources().get(resource, 0))


@contextmanager
def _reservation(bundles: list[dict[str, float]]) -> Iterator[PlacementGroup]:
    group = placement_group(bundles)
    try:
        yield group
    finally:
        remove_placement_group(group)
