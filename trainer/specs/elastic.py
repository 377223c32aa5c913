"""Refuses workers that come and go where no machines do. Imports neither torch nor ray."""

from trainer.errors import SpecError
from trainer.specs.base import Spec


def refuse_elastic_workers_here(spec: Spec, *, on_cluster: bool) -> None:
    """Refuse `--min-workers` for a run on one machine.

    Raises:
        SpecError: The run may have fewer workers, and runs on no Ray cluster.
    """
    if spec.is_elastic and not on_cluster:
        raise SpecError(
            f"--min-workers {spec.required_workers} needs a Ray cluster, whose machines come and go; on one machine "
            "leave it out"
        )
