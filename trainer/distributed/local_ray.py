"""Leaves out what Ray starts for clusters, in a Ray on this machine, which one run has for itself.

Ray has no public switches for these parts, which take half of the CPU time of a start. Without them a run still has
the GCS, the raylet, its agents and the log monitor, a controller, and the workers.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from ray._private.node import Node
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

# The cleaner frees what the workers held when a controller dies, but has to ask the dashboard, which does not run here;
# to end it, Ray waits up to a second. The other starts an actor that divides Ray's own data sets among the workers.
UNUSED_CALLBACKS = (PlacementGroupCleanerCallback, DatasetsCallback)


@contextlib.contextmanager
def without_cluster_processes() -> Iterator[None]:
    """Let `ray.init` start neither the dashboard, for which it would wait, nor the autoscaler's monitor."""
    start_api_server, start_monitor = Node.start_api_server, Node.start_monitor
    Node.start_api_server = Node.start_monitor = _start_nothing
    try:
        yield
    finally:
        Node.start_api_server, Node.start_monitor = start_api_server, start_monitor


def _start_nothing(_node: Node, **_options: object) -> None:
    """Replace a method of Ray that starts a process."""


class LocalScalingPolicy(FixedScalingPolicy):  # type: ignore[misc]  # Ray has no types
    """A fixed number of workers, without the actor that asks an autoscaler for their resources."""

    def after_controller_start(self, train_run_context: object) -> None:
        """Register nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Ask for nothing."""


class LocalTorchTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer in a Ray that belongs to it: three processes less, and without the wait for one of them."""

    def _create_default_callbacks(self) -> list[Any]:
        return [made for made in super()._create_default_callbacks() if not isinstance(made, UNUSED_CALLBACKS)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(
            **{**parts, "scaling_policy": LocalScalingPolicy(self.scaling_config)}
        )
