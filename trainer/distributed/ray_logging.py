"""Setup hook of each process that the local Ray starts; a file of its own, so that they do not import torch."""

import logging

import ray

from cluster.process_env import set_ray_address


def quieten_ray() -> None:
    """Silence Ray's placement group cleaner, which polls the dashboard every second although none runs here."""
    cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(cleaner).setLevel(logging.ERROR)
    set_ray_address(ray.get_runtime_context().gcs_address)
