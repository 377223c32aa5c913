"""Setup hook of each process that the local Ray starts; a file of its own, so that they do not import torch."""

import ray

from cluster.process_env import set_ray_address


def set_own_ray_address() -> None:
    """Let the process find the Ray that started it."""
    set_ray_address(ray.get_runtime_context().gcs_address)
