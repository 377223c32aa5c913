"""Run in each process that the local Ray starts. Imports nothing heavy."""

import logging


def quieten_ray() -> None:
    """Silence a warning a second: the cleaner of placement groups asks Ray's dashboard, which does not run here."""
    cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(cleaner).setLevel(logging.ERROR)
