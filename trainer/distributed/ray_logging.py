"""Run in each process that the local Ray starts. Imports nothing heavy of its own."""

import logging

import ray

from cluster.process_env import set_ray_address


def quieten_ray() -> None:
    """Silence the cleaner of placement groups: it asks Ray's dashboard, which does not run here, every second."""
    cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(cleaner).setLevel(logging.ERROR)
    set_ray_address(ray.get_runtime_context().gcs_address)
