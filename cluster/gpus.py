"""NVIDIA GPUs of this machine: how many a process may use, and what torch says of them.

torch is asked in a process of its own: a process that has initialized CUDA holds GPU memory and must not fork.
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import InsufficientResources
from cluster.process_env import cuda_visible_devices, environment_with_gpus

NVIDIA_SMI_SECONDS = 20.0
PROBE = (sys.executable, "-P", "-m", "trainer.distributed.device_probe")
PROBE_SECONDS = 180.0  # torch alone takes ten seconds to import on a busy machine
NO_DEVICES = "no devices were found"
GIGABYTE = 10**9
CPU_CURE = "use --gpus-per-worker 0 to run on CPUs"
OLDER_CUDA = 12  # the major version of CUDA that torch for older drivers and cards is built for
OLDER_TORCH = "torch for older drivers and cards (TORCH=cu126, of `make install-user` and of the image)"


@dataclass(frozen=True, kw_only=True)
class GpuCount:
    """The GPUs of this machine.

    Attributes:
        uuids: Those that `CUDA_VISIBLE_DEVICES` shows to this process, in its order.
        in_all: Number of those that the driver lists.
        fault: Why the driver cannot list them; None if it can, or if there is none.
    """

    uuids: tuple[str, ...] = ()
    in_all: int = 0
    fault: str | None = None

    @property
    def usable(self) -> int:
        """Number of GPUs that this process may use."""
        return len(self.uuids)


@dataclass(frozen=True, kw_only=True)
class TorchDevice:
    """A GPU as torch sees it.

    Attributes:
        name: Name of the card.
        capability: Compute capability, such as "9.0".
        memory_bytes: Its memory.
        free_bytes: What nobody uses of it.
        fault: Why no kernel runs on it; None if one does.
    """

    name: str
    capability: str
    memory_bytes: int = 0
    free_bytes: int = 0
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """What torch says of the GPUs that it sees.

    Attributes:
        torch: Version of torch.
        cuda: Version of CUDA that torch was built for; None for a build without CUDA.
        driver: Newest version of CUDA that the driver supports; None without a driver.
        architectures: GPU architectures that torch has kernels for.
        devices: The GPUs.
        fault: Why there is none to use; None if there is.
    """

    torch: str
    cuda: str | None = None
    driver: str | None = None
    architectures: tuple[str, ...] = ()
    devices: tuple[TorchDevice, ...] = ()
    fault: str | None = None

    @classmethod
    def from_json(cls, text: str) -> "DeviceReport":
        """Return the report that the probe wrote.

        Raises:
            ValueError, TypeError, KeyError: It is none.
        """
        value: dict[str, Any] = json.loads(text)
        devices = tuple(TorchDevice(**device) for device in value.pop("devices"))
        return cls(devices=devices, architectures=tuple(value.pop("architectures")), **value)


def query(fields: str) -> subprocess.CompletedProcess[str]:
    """Return the answer of nvidia-smi about these fields of all GPUs: a line for each, comma-separated, without units.

    Raises:
        subprocess.TimeoutExpired: It does not answer in time.
        OSError: There is no driver.
    """
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False)


def count_gpus() -> GpuCount:
    """Return which GPUs this process may use, by nvidia-smi and `CUDA_VISIBLE_DEVICES`, without CUDA or torch."""
    variable = cuda_visible_devices()
    if variable is not None and not _entries(variable):
        return GpuCount()
    try:
        answer = query("uuid")
    except subprocess.TimeoutExpired:
        return GpuCount(fault=f"nvidia-smi does not answer within {NVIDIA_SMI_SECONDS:.0f} s")
    except OSError:  # there is no driver
        return GpuCount()
    if answer.returncode:
        none = NO_DEVICES in (answer.stdout + answer.stderr).lower()
        return GpuCount(fault=None if none else f"nvidia-smi fails with exit code {answer.returncode}")
    uuids = tuple(answer.stdout.split())
    return GpuCount(uuids=uuids if variable is None else visible_uuids(uuids, variable), in_all=len(uuids))


def gpu_modes() -> tuple[str, ...]:
    """Return what is unusual about the modes of the GPUs, such as "MIG enabled"; what is unknown is left out."""
    try:
        answer = query("compute_mode,mig.mode.current")
    except (subprocess.TimeoutExpired, OSError):
        return ()
    words = {word.strip() for line in answer.stdout.splitlines() for word in line.split(",")}
    modes = {"Exclusive_Process": "compute mode exclusive", "Prohibited": "compute mode prohibited"}
    return tuple(text for word, text in (modes | {"Enabled": "MIG enabled"}).items() if word in words)


def visible_uuids(uuids: Sequence[str], variable: str) -> tuple[str, ...]:
    """Return which of the GPUs CUDA shows for a value of `CUDA_VISIBLE_DEVICES`.

    CUDA takes the entries up to the first one that names no GPU, and none at all if one comes twice. An entry is an
    index, or the beginning of a UUID that is the beginning of no other.
    """
    entries = _entries(variable)
    if entries and entries[0].startswith("MIG-"):
        return tuple(entries)  # instances of GPUs, which this list of GPUs does not have
    found: list[str] = []
    for entry in entries:
        if entry.startswith("GPU-"):
            named = [uuid for uuid in uuids if uuid.startswith(entry)]
        else:
            named = list(uuids[int(entry) : int(entry) + 1])
        if len(named) != 1:
            break
        found += named
    return tuple(found) if len(set(found)) == len(found) else ()


def _entries(variable: str) -> list[str]:
    """Return the UUIDs or indexes of the variable up to the first entry that is neither, none if one comes twice."""
    first = variable.strip()[:4]
    pattern = rf"({re.escape(first)}[\w/-]+)" if first in ("GPU-", "MIG-") else r"\+?(\d+).*"  # CUDA reads "1x" as 1
    entries: list[str] = []
    for entry in variable.split(","):
        match = re.fullmatch(pattern, entry.strip())
        if match is None:
            break
        entries.append(match[1])
    return entries if len(set(entries)) == len(entries) else []


@functools.cache
def ask_torch(uuids: tuple[str, ...] | None = None) -> DeviceReport:
    """Return what torch says of these GPUs, by default of all visible ones, asked once in a process of its own."""
    env = None if uuids is None else environment_with_gpus(uuids)
    try:
        answer = subprocess.run(PROBE, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False, env=env)
    except subprocess.TimeoutExpired:
        return DeviceReport(torch="", fault=f"torch does not answer within {PROBE_SECONDS:.0f} s about the GPUs")
    try:
        return DeviceReport.from_json(answer.stdout.strip().splitlines()[-1])
    except (ValueError, TypeError, KeyError, IndexError):
        return DeviceReport(torch="", fault=f"torch ends with exit code {answer.returncode} when it looks for GPUs")


def require_usable_gpus(report: DeviceReport, needed: int) -> None:
    """Refuse a run that needs more GPUs than torch can use.

    Raises:
        InsufficientResources: It does; the text says why torch cannot use them.
    """
    if report.fault is not None:
        raise InsufficientResources(f"{report.fault}; {driver_cure(report)}, or {CPU_CURE}")
    good = [device for device in report.devices if device.fault is None]
    if len(good) >= needed:
        return
    bad = next((d for d in report.devices if d.fault is not None), None)
    why = "" if bad is None else f": GPU {report.devices.index(bad)} ({bad.name}) {bad.fault}"
    fewer = f"use --workers {len(good)}, or " if good else ""
    raise InsufficientResources(
        f"{needed} GPUs are needed and torch can use {len(good)} of {len(report.devices)}{why}; {fewer}{CPU_CURE}"
    )


def driver_cure(report: DeviceReport) -> str:
    """Return what to do about a driver that torch cannot use."""
    if report.cuda is None or report.driver is None:
        return "install the NVIDIA driver and a torch that was built for CUDA"
    cure = f"install a driver for CUDA {report.cuda} or newer"
    return f"{cure}, or {OLDER_TORCH}" if int(report.driver.partition(".")[0]) >= OLDER_CUDA else cure
