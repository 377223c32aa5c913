"""Checks of CPUs, GPUs and shared memory for `nightshift doctor`: what was found and, for a fault, the cure."""

import re
import resource
from pathlib import Path

from cluster.gpus import CPU_CURE, GIGABYTE, OLDER_TORCH, DeviceReport, TorchDevice, ask_torch, driver_cure, gpu_modes
from cluster.health import CheckResult
from cluster.resources import Machine, this_machine
from cluster.shared_memory import CURE, LEAST_BYTES, SHARED_MEMORY, shared_memory_bytes

RDMA_DEVICES = Path("/dev/infiniband")
MODE_CURES = {
    "compute mode exclusive": "run `nvidia-smi --compute-mode=DEFAULT`: a search runs several trials on a GPU",
    "compute mode prohibited": "run `nvidia-smi --compute-mode=DEFAULT`",
}


def check_processors() -> list[CheckResult]:
    """Check that torch can use the GPUs that are there; a machine without a GPU is no fault."""
    machine = this_machine()
    found = [_processors(machine)]
    if machine.gpus:
        report = ask_torch()
        found += [_torch(report), *(_device(number, device, report) for number, device in enumerate(report.devices))]
        found += [*map(_mode, gpu_modes()), _shared_memory()]
        if RDMA_DEVICES.exists():
            found.append(_locked_memory())
    return found


def _processors(machine: Machine) -> CheckResult:
    cpus = f"{machine.cpus} CPU{'s' * (machine.cpus > 1)}"
    if machine.gpu_fault is not None:
        cure = f"repair the NVIDIA driver, or {CPU_CURE}"
        return CheckResult(check="processors", ok=False, found=f"{cpus}; {machine.gpu_fault}", cure=cure)
    gpus = f"{machine.gpus} GPU{'s' * (machine.gpus > 1)}" if machine.gpus else "no GPU; runs use CPUs"
    hidden = f" (CUDA_VISIBLE_DEVICES hides {machine.hidden_gpus})" if machine.hidden_gpus else ""
    return CheckResult(check="processors", ok=True, found=f"{cpus}, {gpus}{hidden}")


def _torch(report: DeviceReport) -> CheckResult:
    if report.fault is not None:
        return CheckResult(check="torch", ok=False, found=report.fault, cure=f"{driver_cure(report)}, or {CPU_CURE}")
    found = f"{report.torch} with CUDA {report.cuda}, driver for CUDA {report.driver}"
    return CheckResult(check="torch", ok=True, found=found)


def _device(number: int, device: TorchDevice, report: DeviceReport) -> CheckResult:
    title = f"{device.name}, compute capability {device.capability}"
    if device.fault is not None:
        kernels = f"install {OLDER_TORCH}, " if _is_too_old(device, report) else ""
        cure = f"hide it with CUDA_VISIBLE_DEVICES, {kernels}or {CPU_CURE}"
        return CheckResult(check=f"GPU {number}", ok=False, found=f"{title}: it {device.fault}", cure=cure)
    free, memory = device.free_bytes / GIGABYTE, device.memory_bytes / GIGABYTE
    return CheckResult(check=f"GPU {number}", ok=True, found=f"{title}, {free:.1f} of {memory:.1f} GB free")


def _is_too_old(device: TorchDevice, report: DeviceReport) -> bool:
    """Whether a card is older than all that this torch has kernels for, such as 7.0 beside sm_75 and sm_90."""
    known = [int(number) for number in re.findall(r"sm_(\d+)", " ".join(report.architectures))]
    major, _, minor = device.capability.partition(".")
    return bool(known and minor) and int(major) * 10 + int(minor) < min(known)


def _mode(mode: str) -> CheckResult:
    cure = MODE_CURES.get(mode)
    return CheckResult(check="GPU mode", ok=cure is None, found=mode, cure=cure)


def _shared_memory() -> CheckResult:
    size = shared_memory_bytes()
    if size is None:
        return CheckResult(check="shared memory", ok=False, found=f"{SHARED_MEMORY} does not exist", cure=CURE)
    cure = CURE if size < LEAST_BYTES else None
    return CheckResult(check="shared memory", ok=cure is None, found=f"{size >> 20} MiB", cure=cure)


def _locked_memory() -> CheckResult:
    """Check the limit of memory that NCCL may lock for RDMA; without RDMA it locks none."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return CheckResult(check="locked memory", ok=True, found="no limit, as RDMA needs")
    cure = "set LimitMEMLOCK=infinity in containerd.service of the node, or `ulimit -l unlimited` outside a container"
    return CheckResult(check="locked memory", ok=False, found=f"limited to {limit >> 10} KiB; RDMA fails", cure=cure)
