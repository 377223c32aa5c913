"""CPUs and NVIDIA GPUs of this machine, found without importing torch; refuses runs that need more."""

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InsufficientResources
from cluster.gpus import CPU_CURE, GpuCount, count_gpus

MEMORY = Path("/proc/meminfo")
CGROUP_MEMORY = (  # the limit of a container, what it uses, and the part of that which the kernel can drop
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """CPUs and GPUs of one machine.

    Attributes:
        cpus: CPUs that this process may use, from its affinity and the container's CPU quota.
        gpus: NVIDIA GPUs that the driver lists and `CUDA_VISIBLE_DEVICES` shows.
        hidden_gpus: NVIDIA GPUs that `CUDA_VISIBLE_DEVICES` hides.
        gpu_fault: Why the GPUs cannot be counted; None if they can.
    """

    cpus: int
    gpus: int
    hidden_gpus: int = 0
    gpu_fault: str | None = None


def this_machine(found: GpuCount | None = None) -> Machine:
    """Return the CPUs and GPUs of this machine; without the NVIDIA driver there are no GPUs.

    Args:
        found: The GPUs, if they have been counted: that can take the driver a second.
    """
    found = found or count_gpus()
    hidden = max(0, found.in_all - found.usable)  # of one GPU, several MIG instances may be usable
    return Machine(cpus=cpu_count(), gpus=found.usable, hidden_gpus=hidden, gpu_fault=found.fault)


def gpus_per_worker(requested: int | str, workers: int, machine: Machine) -> int:
    """Return 0 or 1 for `requested` ("auto", 0 or 1); "auto" is 1 if the machine has a GPU for each worker."""
    if requested == "auto":
        return int(machine.gpus >= workers)
    return int(requested)


def refuse_impossible(*, workers: int, gpus_per_worker: int | str, machine: Machine) -> None:
    """Refuse a run that needs more than this machine has.

    Raises:
        InsufficientResources: There are fewer CPUs than workers, or fewer GPUs than the workers need.
    """
    if gpus_per_worker != 0:
        _refuse_missing_gpus(workers, machine, asked=gpus_per_worker == 1)
    if workers > machine.cpus:
        raise InsufficientResources(
            f"{workers} workers need {workers} CPUs and this machine has {machine.cpus}; use --workers {machine.cpus}"
        )


def refuse_fewer_gpus(workers: int, gpus: int, where: str, more: str = "") -> None:
    """Refuse workers that need more GPUs than there are, instead of running them on CPUs.

    Args:
        workers: Number of workers, each of which needs a GPU.
        gpus: Number of GPUs.
        where: What has them, as it stands before the number in the error.
        more: A further cure.

    Raises:
        InsufficientResources: They do.
    """
    if gpus < workers:
        cure = f"use --workers {gpus} or --gpus-per-worker 0" if gpus else "use --gpus-per-worker 0"
        needed = "1 worker needs 1 GPU" if workers == 1 else f"{workers} workers need {workers} GPUs"
        raise InsufficientResources(f"{needed} and {where} {gpus}; {cure}{more}")


def _refuse_missing_gpus(workers: int, machine: Machine, *, asked: bool) -> None:
    if machine.gpu_fault is not None:
        raise InsufficientResources(f"{machine.gpu_fault}, so the GPUs are not known; repair the driver, or {CPU_CURE}")
    if asked or machine.gpus:
        hidden = f" (CUDA_VISIBLE_DEVICES hides {machine.hidden_gpus} more)" if machine.hidden_gpus else ""
        refuse_fewer_gpus(workers, machine.gpus, f"this machine{hidden} has")


def cpu_count() -> int:
    """Return the CPUs that this process may use, from its affinity and the container's CPU quota."""
    import joblib  # noqa: PLC0415 -- it imports NumPy, which most commands do not need

    return int(joblib.cpu_count())


def available_memory() -> int | None:
    """Return the bytes of memory that new processes can use, of the machine and its container; None if not known."""
    found = [_numbers(MEMORY).get("MemAvailable:", -1) * 1024]
    for folder, limit, used, droppable in CGROUP_MEMORY:
        try:
            free = int((folder / limit).read_text()) - int((folder / used).read_text())
        except (OSError, ValueError):  # there is no limit, which reads as "max"
            continue
        found.append(free + _numbers(folder / "memory.stat").get(droppable, 0))
    return min((size for size in found if size >= 0), default=None)


def _numbers(table: Path) -> dict[str, int]:
    """Return the second words of a file's lines by the first ones."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
