"""Starts a Ray on this machine, which one run has for itself, without what Ray starts for clusters.

Ray has no public switches for these parts, which take half of the CPU time of a start. Without them a run still has
the GCS, the raylet, its agents and the log monitor, a controller, and the workers.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray._private.node import Node
from ray.exceptions import RpcError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

# The cleaner frees what the workers held when a controller dies, but has to ask the dashboard, which does not run here;
# to end it, Ray waits up to a second. The other starts an actor that divides Ray's own data sets among the workers.
UNUSED_CALLBACKS = (PlacementGroupCleanerCallback, DatasetsCallback)
REGISTRATION_SECONDS = 5.0  # then Ray itself waits, for 30 seconds
POLL_SECONDS = 0.01
FOLDER_PREFIX = "ns-"  # short: Ray puts its sockets below, and the path of a Unix socket has at most 107 bytes
FOLDER_LOCK = "nightshift-ray.lock"  # a live trainer holds it; no other program has a file of this name

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def session_folder() -> Iterator[str]:
    """Yield an empty folder for the files of a Ray, and delete it, and those of trainers that were killed."""
    _delete_left_folders()
    with (
        tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True) as folder,
        Path(folder, f".{FOLDER_LOCK}").open("w") as handle,
    ):
        with contextlib.suppress(OSError):  # a file system without locks: without the mark, nobody deletes the folder
            fcntl.flock(handle, fcntl.LOCK_EX)
            Path(handle.name).rename(Path(folder, FOLDER_LOCK))  # only now: nobody sees a lock that is not held yet
        yield folder


def _delete_left_folders() -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*/{FOLDER_LOCK}"):
        with contextlib.suppress(OSError):  # its trainer is alive, or another trainer has just deleted it
            if lock.parent.lstat().st_uid == os.geteuid():
                with lock.open() as handle:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    logger.info("deletes %s, which a Ray of a run that was killed has left", lock.parent)
                    shutil.rmtree(lock.parent, ignore_errors=True)


@contextlib.contextmanager
def starting_for_one_run() -> Iterator[None]:
    """Let `ray.init` start neither the dashboard nor the autoscaler's monitor, and notice at once that Ray runs."""
    start_api_server, start_monitor = Node.start_api_server, Node.start_monitor
    start_ray_processes = Node.start_ray_processes

    def start_and_await_registration(node: Node) -> None:
        start_ray_processes(node)
        _await_registration(node)

    Node.start_api_server = Node.start_monitor = _start_nothing
    Node.start_ray_processes = start_and_await_registration
    try:
        yield
    finally:
        Node.start_api_server, Node.start_monitor = start_api_server, start_monitor
        Node.start_ray_processes = start_ray_processes


def _await_registration(node: Node) -> None:
    """Wait until the raylet has registered with the GCS, for which Ray looks only once a second."""
    until, gcs = time.monotonic() + REGISTRATION_SECONDS, node.get_gcs_client()
    with contextlib.suppress(RpcError):  # the GCS does not answer: Ray, which looks next, raises an error
        while not gcs.get_all_node_info(timeout=REGISTRATION_SECONDS) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)


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
