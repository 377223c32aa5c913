"""The GPUs of a run on this machine: leased before CUDA starts, and then the only ones that CUDA shows."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import ray

from cluster.errors import InsufficientResources
from cluster.gpu_lease import GpuLease, GpuRequest, wait_for_gpus
from cluster.gpus import GpuCount, count_gpus, require_usable_gpus
from cluster.process_env import show_gpus
from cluster.resources import Machine, gpus_per_worker, refuse_impossible, this_machine
from cluster.shared_memory import require_shared_memory
from trainer.attempt import Attempt
from trainer.distributed.device_probe import probe_gpus
from trainer.distributed.visible_wait import VisibleWait
from trainer.specs import Spec

logger = logging.getLogger(__name__)


@dataclass
class _Held:
    """The leases of this process. A process that has used a GPU keeps memory of it, so it keeps its leases too.

    Attributes:
        visible: The GPUs that were visible before the first lease.
        leases: In the order in which they were taken.
    """

    visible: tuple[str, ...] = ()
    leases: list[GpuLease] = field(default_factory=list)

    @property
    def uuids(self) -> tuple[str, ...]:
        return tuple(uuid for lease in self.leases for uuid in lease.uuids)


_held = _Held()


def lease_local_gpus(
    attempt: Attempt, spec: Spec, *, most: int | None = None, stop_reason: Callable[[], str | None] | None = None
) -> tuple[Machine, int]:
    """Lease the GPUs that a run on this machine needs, and wait until they are free; call it before CUDA starts.

    Inside a Ray that this run started nothing is leased: the process that started it holds the leases.

    Args:
        attempt: The run; its progress says what it waits for.
        spec: How many workers there are, and whether they use GPUs.
        most: GPUs that it can use; None means one for each worker.
        stop_reason: Returns why to stop waiting, or None; by default the request to stop the run.

    Returns:
        The CPUs of this machine with the GPUs that the run leases, and the number of GPUs of each worker, 0 or 1.

    Raises:
        InsufficientResources: There is less than the workers need, torch cannot use the GPUs, or they stayed in use.
        Stopped: The run was asked to stop while it waited.
    """
    found = count_gpus()
    machine = _machine(found)
    refuse_impossible(workers=spec.workers, gpus_per_worker=spec.gpus_per_worker, machine=machine)
    per_worker = gpus_per_worker(spec.gpus_per_worker, spec.workers, machine)
    if ray.is_initialized():
        return machine, per_worker
    if not per_worker:
        return Machine(cpus=machine.cpus, gpus=0), 0
    require_shared_memory()
    missing = spec.workers - len(_held.uuids)
    if missing > 0:
        _held.visible = _held.visible or found.uuids
        wait = VisibleWait(attempt, stop_reason)
        _lease(wait, need=missing, most=max(missing, (most or 0) - len(_held.uuids)))
    return Machine(cpus=machine.cpus, gpus=len(_held.uuids)), 1


def gpus_of_machine() -> int:
    """Return how many GPUs share the CPUs of this machine, those of other runs included; 0 if this process has none."""
    return len(_held.visible)


def _machine(found: GpuCount) -> Machine:
    """Return this machine as it was before this process showed CUDA only what it leases."""
    machine = this_machine(found)
    if not _held.visible or ray.is_initialized():
        return machine
    hidden = machine.gpus + machine.hidden_gpus - len(_held.visible)
    return Machine(cpus=machine.cpus, gpus=len(_held.visible), hidden_gpus=max(0, hidden))


def _lease(wait: VisibleWait, *, need: int, most: int) -> None:
    """Lease GPUs on which torch runs; those on which it does not are left out, with a warning."""
    settings = wait.attempt.settings
    usable = [uuid for uuid in _held.visible if uuid not in _held.uuids]
    while True:
        request = GpuRequest(uuids=usable, need=need, most=most)
        lease = wait_for_gpus(settings.gpu_locks, request, wait, limit_seconds=settings.gpu_wait_seconds)
        report = probe_gpus(lease.uuids)
        bad = {uuid: gpu for uuid, gpu in zip(lease.uuids, report.devices, strict=False) if gpu.fault is not None}
        usable = [uuid for uuid in usable if uuid not in bad]
        if not bad or len(usable) < need:
            break
        for uuid, gpu in bad.items():
            logger.warning("GPU %s (%s) is left out: it %s", uuid, gpu.name, gpu.fault)
        lease.release()
    try:
        require_usable_gpus(report, need)
    except InsufficientResources:
        lease.release()
        raise
    _held.leases.append(lease)
    names = (f"{gpu.name} ({uuid})" for uuid, gpu in zip(lease.uuids, report.devices, strict=False))
    logger.info("runs on %s", ", ".join(names))
    show_gpus(_held.uuids)
    wait.ended()
