"""Imports Ray so that forks of this process can be Ray's processes, and looks whether they can.

A fork has all that the process had imported, also what must not be the same in two processes: random numbers.
"""

import importlib
import multiprocessing
import os
import sys
from typing import Any

from cluster.fork_server import fault_of_forks
from cluster.process_env import variables_set

JOB = "01000000"  # the id of the first job of any Ray, that of the trainer which has started it
# What Ray's agents import, and what `ray.init` imports to see whether they can.
AGENT_MODULES = (
    "ray.dashboard.optional_deps",
    "ray.dashboard.http_server_agent",
    "ray.dashboard.modules.aggregator.aggregator_agent",
    "ray.dashboard.modules.job.job_agent",
    "ray.dashboard.modules.reporter.reporter_agent",
)
# Ray's library reads these when it is imported. A worker ends when the process of `RAY_RAYLET_PID` has; process 1 has
# not, and a fork ends with its client, which ends with the raylet.
READ_AT_IMPORT = {"RAY_JOB_ID": JOB, "RAY_RAYLET_PID": "1"}


class _State:
    """What this process has done.

    Attributes:
        imported: Whether it has imported Ray so that forks of it can be Ray's workers.
    """

    imported: bool = False


def import_ray_for_forks() -> None:
    """Import Ray so that forks of this process can be workers of the Ray that one of its other forks starts."""
    if "ray" in sys.modules:
        return
    with variables_set(READ_AT_IMPORT):
        actor: Any = importlib.import_module("ray.actor")
    identifier = actor.ActorClassID

    class FromSystem(identifier):  # type: ignore[misc, valid-type]  # Ray has no types
        """Identifiers of the actors that modules declare, not from Ray's generator: see `_fault_of_ray_forks`."""

        @classmethod
        def from_random(cls) -> Any:
            return identifier(os.urandom(identifier.size()))

    actor.ActorClassID = FromSystem
    _State.imported = True


def import_ray_agents() -> None:
    """Import what Ray's agents need, so that their forks start sooner."""
    for module in AGENT_MODULES:
        importlib.import_module(module)


def can_fork_ray() -> bool:
    """Return whether forks of this process can be Ray's processes; it has imported all that they need.

    If they cannot, a line on stderr says why, and Ray starts its processes as always.
    """
    if fault := _fault_of_ray_forks():
        sys.stderr.write(f"Ray's processes start without a fork server: {fault}\n")
        sys.stderr.flush()
    return fault is None


def _fault_of_ray_forks() -> str | None:
    """Return why forks of this process must not be Ray's processes, or None.

    A generator of random numbers that is seeded before a fork gives all forks the same numbers. Ray's are its
    identifiers: two tasks of one identifier end a worker. So no import may use the generator, and this looks whether
    one has.
    """
    if not _State.imported:
        return "Ray was imported too early"
    if fault := fault_of_forks():
        return fault
    _State.imported = _random_task_in_fork() != _random_task_in_fork()
    return None if _State.imported else "an import has used Ray's random numbers"


def _random_task_in_fork() -> bytes:
    """Return an identifier that Ray draws in a fork of this process."""
    ray, (ours, theirs) = sys.modules["ray"], os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(theirs, ray.TaskID.for_fake_task(ray.JobID.from_int(1)).binary())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as drawn:  # noqa: PTH123 -- a number
        identifier = drawn.read()
    os.waitpid(pid, 0)
    return identifier


def ray_was_imported_too_early() -> bool:
    """Return whether Ray is imported, but not so that forks of this process can be Ray's processes."""
    return "ray" in sys.modules and not _State.imported


def seed_fork() -> None:
    """Give this process, a fork, the random numbers of a process that starts; call it when torch is imported.

    Python's own generator seeds itself after a fork. NumPy's must not be the same in all forks; torch's is, in any
    process: it begins with a constant.
    """
    numpy, generator = sys.modules["numpy"], sys.modules["torch"].default_generator
    numpy.random.seed()
    generator.manual_seed(generator.initial_seed())
    multiprocessing.current_process().authkey = os.urandom(32)
