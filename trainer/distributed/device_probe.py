"""What torch says of GPUs, found in a process of its own: that initializes CUDA and runs a kernel on every GPU.

`python -m trainer.distributed.device_probe` prints it as JSON (`DeviceReport`).
"""

import ctypes
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain
from multiprocessing.connection import Connection

import torch

from cluster.gpus import DeviceReport, TorchDevice, ask_torch
from cluster.process_env import show_gpus
from trainer.distributed.child_process import ChildProcess, forks_can_use_gpus

FORK_SECONDS = 60.0  # for what takes a fork about a second

# What torch says, and what it means.
FAULTS = {
    "no kernel image": "has an architecture that this torch has no kernels for ({architectures})",
    "busy or unavailable": "is held by another process (compute mode exclusive or prohibited)",
    "out of memory": "has no free memory",
    "ecc": "has an uncorrectable memory error",
}


def probe_gpus(uuids: Sequence[str]) -> DeviceReport:
    """Return what torch says of these GPUs, asked in a fork of this process, which has imported torch.

    A new process, which takes seconds longer, is asked where a fork cannot start CUDA, and again about any fault: no
    GPU is refused because of what a fork has inherited. MIG instances are asked about one by one: CUDA shows a process
    only the first of them.
    """
    if len(uuids) > 1 and any(uuid.startswith("MIG-") for uuid in uuids):
        reports = [probe_gpus([uuid]) for uuid in uuids]
        good = next((one for one in reports if one.fault is None), None)
        if good is None:
            return reports[0]
        devices = (_devices_of(uuid, one) for uuid, one in zip(uuids, reports, strict=True))
        return replace(good, devices=tuple(chain.from_iterable(devices)))
    found = _asked_in_fork(uuids) if forks_can_use_gpus() else None
    if found is None or found.fault or any(device.fault for device in found.devices):
        return ask_torch(tuple(uuids))
    return found


def _devices_of(uuid: str, one: DeviceReport) -> tuple[TorchDevice, ...]:
    """Return the devices of the report on one MIG instance; if there is none to use, the instance with the fault."""
    if one.fault is None:
        return one.devices
    return (TorchDevice(name=uuid, capability="", fault=f"cannot be used: {one.fault}"),)


def _asked_in_fork(uuids: Sequence[str]) -> DeviceReport | None:
    """Return the report of a fork; None if it ends or hangs without one."""
    try:
        process = ChildProcess(_send_report, uuids)
    except OSError:  # there is no memory for a fork
        return None
    try:
        return process.connection.recv() if process.connection.poll(FORK_SECONDS) else None
    except (EOFError, OSError):
        return None
    finally:
        process.end()


def _send_report(connection: Connection, uuids: Sequence[str]) -> None:
    warnings.simplefilter("ignore")
    show_gpus(uuids)
    connection.send(report())


def report() -> DeviceReport:
    """Return what torch says of the GPUs; a GPU on which no kernel runs is a fault."""
    driver = _driver_version()
    facts = DeviceReport(
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        driver=None if driver is None else f"{driver // 1000}.{driver % 1000 // 10}",
        architectures=tuple(torch.cuda.get_arch_list()) if torch.version.cuda else (),
    )
    fault = _fault(facts, driver)
    devices = () if fault else tuple(_device(number, facts) for number in range(torch.cuda.device_count()))
    return DeviceReport(**{**vars(facts), "devices": devices, "fault": fault})


def _fault(facts: DeviceReport, driver: int | None) -> str | None:
    if facts.cuda is None:
        return f"torch {facts.torch} was built without CUDA and cannot use GPUs"
    if driver is None:
        return "there is no NVIDIA driver for torch (libcuda.so.1 is missing)"
    if driver // 1000 < int(facts.cuda.partition(".")[0]):
        return f"the NVIDIA driver supports CUDA {facts.driver} and torch {facts.torch} needs CUDA {facts.cuda}"
    return None if torch.cuda.is_available() else f"torch {facts.torch} cannot start CUDA on this machine"


def _device(number: int, facts: DeviceReport) -> TorchDevice:
    name, capability = f"GPU {number}", ""
    try:
        name = torch.cuda.get_device_name(number)
        capability = ".".join(map(str, torch.cuda.get_device_capability(number)))
        total = int(torch.ones(8, device=f"cuda:{number}").sum().item())  # runs a kernel
        free, memory = torch.cuda.mem_get_info(number)
    except (RuntimeError, AssertionError) as error:  # torch raises these alone, for every fault of CUDA
        text = next((text for words, text in FAULTS.items() if words in str(error).lower()), "runs no kernel")
        fault = text.format(architectures=" ".join(facts.architectures))
        return TorchDevice(name=name, capability=capability, fault=fault)
    wrong = None if total == 8 else "computes wrong results"  # noqa: PLR2004
    return TorchDevice(name=name, capability=capability, memory_bytes=memory, free_bytes=free, fault=wrong)


def _driver_version() -> int | None:
    """Return 1000 x major + 10 x minor of the newest CUDA that the driver supports; None without a driver."""
    version = ctypes.c_int(0)
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value if status == 0 else None


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch warns about what the report says
    sys.stdout.write(json.dumps(asdict(report())) + "\n")
