"""What torch says of GPUs, with a torch that sees them; no GPU is needed."""

import errno
import json
import os
import signal
from dataclasses import asdict, replace

import pytest
import ray
import torch

from cluster.errors import InsufficientResources
from cluster.gpus import DeviceReport, TorchDevice
from trainer.distributed import device_probe
from trainer.distributed.device_probe import probe_gpus, report
from trainer.distributed.process_group import ProcessGroup


class Card:
    """A CUDA of one card on which a kernel gives `result` or raises it."""

    def __init__(self, monkeypatch):
        self.result, self.driver = 8.0, 13020
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (15 * 10**9, 16 * 10**9))
        monkeypatch.setattr(torch, "ones", lambda *_, **__: self.ones())
        monkeypatch.setattr(device_probe, "_driver_version", lambda: self.driver)

    def ones(self):
        if isinstance(self.result, Exception):
            raise self.result
        return torch.tensor([self.result])


@pytest.fixture
def card(monkeypatch):
    return Card(monkeypatch)


def test_a_good_card_is_reported_with_its_memory(card):
    found = report()

    assert (found.fault, found.cuda, found.driver) == (None, "13.2", "13.2")
    assert found.architectures == ("sm_75", "sm_90")
    assert (found.devices[0].name, found.devices[0].capability) == ("Tesla T4", "7.5")
    assert (found.devices[0].memory_bytes, found.devices[0].free_bytes) == (16 * 10**9, 15 * 10**9)
    assert found.devices[0].fault is None


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        (RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with"),
         "has an architecture that this torch has no kernels for (sm_75 sm_90)"),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), "is held by another process"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), "has no free memory"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "uncorrectable memory error"),
        (RuntimeError("CUDA error: unknown error\n" + "x" * 1500), "runs no kernel"),
        (7.0, "computes wrong results"),
    ],
)  # fmt: skip
def test_a_card_that_runs_no_kernel_is_a_fault_in_one_line(card, result, fault):
    card.result = result

    (device,) = report().devices

    assert fault in device.fault
    assert "\n" not in device.fault


@pytest.mark.parametrize("driver", [12040, 11080])
def test_a_driver_that_is_too_old_is_named_with_both_versions(card, driver):
    card.driver = driver

    found = report()

    assert f"supports CUDA {driver // 1000}.{driver % 1000 // 10} and torch {torch.__version__} needs" in found.fault
    assert found.devices == ()


def test_a_driver_of_the_same_major_version_is_new_enough(card):
    card.driver = 13000  # CUDA's minor version compatibility

    assert report().fault is None


def test_no_driver_and_a_torch_without_cuda_are_faults(card, monkeypatch):
    card.driver = None
    no_driver = report().fault
    monkeypatch.setattr(torch.version, "cuda", None)

    assert "there is no NVIDIA driver" in no_driver
    assert "was built without CUDA" in report().fault


def test_a_cuda_that_does_not_start_is_a_fault(card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert "cannot start CUDA" in report().fault


def test_a_report_survives_its_way_as_json(card):
    assert DeviceReport.from_json(json.dumps(asdict(report()))) == report()


def seen_devices(fault=None):
    """Return a report on the visible GPUs, as torch would in the process that calls this."""
    devices = [TorchDevice(name=uuid, capability="9.0") for uuid in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
    return DeviceReport(torch=str(os.getpid()), devices=tuple(devices), fault=fault)


@pytest.fixture
def new_process(monkeypatch):
    """What a new process answers; it is asked about the GPUs that `asked` holds. Forks can use GPUs."""
    asked, answer = [], DeviceReport(torch="new process")
    monkeypatch.setattr(device_probe, "forks_can_use_gpus", lambda: True)
    monkeypatch.setattr(device_probe, "ask_torch", lambda uuids: asked.append(uuids) or answer)
    return asked


def test_a_fork_is_asked_about_the_gpus_and_sees_no_others(monkeypatch, new_process):
    monkeypatch.setattr(device_probe, "report", seen_devices)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")

    found = probe_gpus(["GPU-1", "GPU-2"])

    assert [device.name for device in found.devices] == ["GPU-1", "GPU-2"]
    assert (new_process, os.environ["CUDA_VISIBLE_DEVICES"]) == ([], "0,1,2")
    assert int(found.torch) != os.getpid()


def first_device():
    """Return a report on the first visible MIG instance, the only one that CUDA shows a process."""
    seen = seen_devices()
    return replace(seen, devices=seen.devices[:1])


def test_mig_instances_are_asked_about_one_by_one(monkeypatch, new_process):
    monkeypatch.setattr(device_probe, "report", first_device)

    found = probe_gpus(["MIG-1", "MIG-2", "MIG-3"])

    assert [device.name for device in found.devices] == ["MIG-1", "MIG-2", "MIG-3"]
    assert new_process == []


def test_mig_instances_that_all_cannot_be_used_are_one_fault(monkeypatch, new_process):
    monkeypatch.setattr(device_probe, "ask_torch", lambda uuids: no_cuda(uuids[0]))
    monkeypatch.setattr(device_probe, "forks_can_use_gpus", lambda: False)

    assert probe_gpus(["MIG-1", "MIG-2"]) == no_cuda("MIG-1")


def no_cuda(uuid):
    return DeviceReport(torch="2.15", fault=f"torch cannot start CUDA on {uuid}")


def test_one_bad_mig_instance_is_a_device_with_a_fault_beside_the_others(monkeypatch, new_process):
    good = DeviceReport(torch="2.15", devices=(TorchDevice(name="H100 MIG 1g.10gb", capability="9.0"),))
    monkeypatch.setattr(device_probe, "ask_torch", lambda uuids: no_cuda(*uuids) if uuids == ("MIG-1",) else good)
    monkeypatch.setattr(device_probe, "forks_can_use_gpus", lambda: False)

    found = probe_gpus(["MIG-1", "MIG-2"])

    fault = "cannot be used: torch cannot start CUDA on MIG-1"
    bad = TorchDevice(name="MIG-1", capability="", fault=fault)
    assert (found.fault, found.devices) == (None, (bad, *good.devices))


def a_fault():
    return seen_devices(fault="torch cannot start CUDA")


def a_faulty_device():
    return DeviceReport(torch="fork", devices=(TorchDevice(name="a", capability="9.0", fault="runs no kernel"),))


def a_death():
    os.kill(os.getpid(), signal.SIGKILL)


def a_hang():
    signal.pause()


@pytest.mark.parametrize("answer", [a_fault, a_faulty_device, a_death, a_hang])
def test_a_new_process_is_asked_where_a_fork_finds_no_good_gpu(monkeypatch, new_process, answer):
    monkeypatch.setattr(device_probe, "report", answer)
    monkeypatch.setattr(device_probe, "FORK_SECONDS", 1.0 if answer is a_hang else 600.0)

    found = probe_gpus(["GPU-1"])

    assert (found.torch, new_process) == ("new process", [("GPU-1",)])


def no_memory(*_):
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_a_new_process_is_asked_where_there_is_no_memory_for_a_fork(monkeypatch, new_process):
    monkeypatch.setattr(device_probe, "ChildProcess", no_memory)

    found = probe_gpus(["GPU-1"])

    assert (found.torch, new_process) == ("new process", [("GPU-1",)])


def test_a_new_process_is_asked_where_a_fork_could_not_start_cuda(monkeypatch, new_process):
    monkeypatch.setattr(device_probe, "forks_can_use_gpus", lambda: False)
    monkeypatch.setattr(device_probe, "report", lambda: pytest.fail("a fork was asked"))

    found = probe_gpus(["GPU-1"])

    assert (found.torch, new_process) == ("new process", [("GPU-1",)])


def test_a_worker_that_got_a_gpu_does_not_run_on_the_cpu(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(InsufficientResources, match=r"cannot use the GPU of the worker on .*nightshift doctor"):
        ProcessGroup.of_this_worker(on_cpu=False)
