"""GPUs that are counted, and that torch can or cannot use; no GPU is needed."""

import resource
import stat
import sys
from dataclasses import replace

import pytest
import torch
from ray._private.resource_and_label_spec import ResourceAndLabelSpec

from cluster import gpus, shared_memory
from cluster.errors import InsufficientResources
from cluster.gpu_health import check_processors
from cluster.gpus import DeviceReport, GpuCount, TorchDevice, ask_torch, count_gpus, require_usable_gpus, visible_uuids
from cluster.resources import Machine, gpus_per_worker, refuse_impossible, this_machine
from cluster.shared_memory import require_shared_memory
from jobs.cli.demo import _gpus_per_worker

UUIDS = [f"GPU-{digit * 8}-0000-0000-0000-000000000000" for digit in "01234567"]
GOOD = TorchDevice(name="NVIDIA H100", capability="9.0", memory_bytes=80 * 10**9, free_bytes=79 * 10**9)
OLD = TorchDevice(name="Tesla V100", capability="7.0", fault="has an architecture that this torch has no kernels for")
REPORT = DeviceReport(torch="2.15.0", cuda="13.2", driver="13.2", architectures=("sm_75", "sm_90"), devices=(GOOD,) * 2)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a program `nvidia-smi` of the given shell lines first on the PATH."""

    def install(lines):
        program = tmp_path / "bin/nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install("printf '%s\\n' " + " ".join(UUIDS))
    return install


@pytest.mark.parametrize(
    ("variable", "count"),
    [
        ("3", 1),
        ("0,1,2,3", 4),
        (" 1 , 2 ", 2),
        ("+1", 1),
        ("7,8", 1),  # there are eight: 8 names none
        ("8,7", 0),
        ("0,-1,2", 1),
        ("-1", 0),
        ("", 0),
        ("none", 0),
        ("NoDevFiles", 0),
        ("0,0", 0),
        ("1gpu2,2ampere", 2),
        (UUIDS[5], 1),
        (f"{UUIDS[5]},{UUIDS[2]}", 2),
        ("GPU-5,GPU-2", 2),
        ("GPU-", 0),  # the beginning of all
        ("GPU-9", 0),
        (f"{UUIDS[5]},{UUIDS[5]}", 0),
        (f"{UUIDS[5]},3", 1),
        ("MIG-a,MIG-b", 2),
        ("MIG-a,MIG-a", 0),
    ],
)
def test_gpus_are_counted_as_cuda_shows_them(nvidia_smi, monkeypatch, variable, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)

    assert count_gpus().usable == count


@pytest.mark.parametrize("variable", ["3", "", "0,1,2,3,4,5,6,7", "0,9", UUIDS[3], "-1", "none", "MIG-a", "0,0", "8,7"])
def test_ray_takes_the_number_of_gpus(nvidia_smi, monkeypatch, variable):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    machine = this_machine()

    spec = ResourceAndLabelSpec(num_cpus=1, num_gpus=machine.gpus, memory=2**31, object_store_memory=2**27)

    spec.resolve(is_head=True)  # raises ValueError for more than the variable names


def test_torch_counts_the_entries_of_the_variable_in_the_same_way(monkeypatch):
    for variable in ("3", "0,1", "", "-1", "0,-1,2", "1gpu2,2ampere", "0,0", "none", " 1 , 2 "):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        assert len(visible_uuids(UUIDS, variable)) == len(torch.cuda._parse_visible_devices()), variable


def test_without_the_variable_all_gpus_count_and_with_it_the_others_are_hidden(nvidia_smi, monkeypatch):
    every = count_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")

    assert every == GpuCount(uuids=tuple(UUIDS), in_all=8)
    assert this_machine().hidden_gpus == 7


def test_instances_of_one_gpu_hide_no_gpu(nvidia_smi, monkeypatch):
    nvidia_smi(f"echo {UUIDS[0]}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")

    machine = this_machine()

    assert (machine.gpus, machine.hidden_gpus) == (2, 0)


def test_without_a_driver_there_is_no_gpu_and_no_fault(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert count_gpus() == GpuCount()


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver'; exit 9", "exit code 9"),
        ("echo 'No devices were found'; exit 6", None),
        ("exec sleep 60", "does not answer within 0 s"),
    ],
)
def test_a_driver_that_does_not_answer_is_a_fault_and_not_a_machine_without_gpus(nvidia_smi, monkeypatch, lines, fault):
    monkeypatch.setattr(gpus, "NVIDIA_SMI_SECONDS", 0.2)
    nvidia_smi(lines)
    machine = this_machine()

    if fault is None:
        assert machine.gpu_fault is None
        return
    assert fault in str(machine.gpu_fault)
    with pytest.raises(InsufficientResources, match=r"nvidia-smi .*, so the GPUs are not known; .*--gpus-per-worker 0"):
        refuse_impossible(workers=1, gpus_per_worker="auto", machine=machine)
    refuse_impossible(workers=1, gpus_per_worker=0, machine=machine)


@pytest.mark.parametrize(("requested", "workers", "each"), [("auto", 8, 1), (1, 4, 1), (0, 16, 0), ("auto", 1, 1)])
def test_workers_get_the_gpus_that_are_there(requested, workers, each):
    machine = Machine(cpus=64, gpus=8)

    refuse_impossible(workers=workers, gpus_per_worker=requested, machine=machine)

    assert gpus_per_worker(requested, workers, machine) == each


def test_one_worker_without_its_gpu_is_one_and_not_many():
    with pytest.raises(InsufficientResources, match=r"^1 worker needs 1 GPU and this machine has 0; use --gpus-per-w"):
        refuse_impossible(workers=1, gpus_per_worker=1, machine=Machine(cpus=4, gpus=0))


@pytest.mark.parametrize("requested", ["auto", 1])
def test_more_workers_than_gpus_are_refused_instead_of_running_on_cpus(requested):
    machine = Machine(cpus=64, gpus=8, hidden_gpus=2)
    cure = r"16 workers need 16 GPUs and this machine \(CUDA_VISIBLE_DEVICES hides 2 more\) has 8; use --workers 8 or "

    with pytest.raises(InsufficientResources, match=cure + "--gpus-per-worker 0"):
        refuse_impossible(workers=16, gpus_per_worker=requested, machine=machine)


def test_auto_on_a_machine_without_gpus_means_cpus():
    machine = Machine(cpus=4, gpus=0)

    refuse_impossible(workers=4, gpus_per_worker="auto", machine=machine)

    assert gpus_per_worker("auto", 4, machine) == 0


@pytest.mark.parametrize(
    ("changes", "needed", "text"),
    [
        ({}, 3, "3 GPUs are needed and torch can use 2 of 2; use --workers 2, or use --gpus-per-worker 0"),
        ({"devices": (GOOD, OLD)}, 2, r"torch can use 1 of 2: GPU 1 \(Tesla V100\) has an architecture that this"),
        ({"devices": (OLD,)}, 1, r"torch can use 0 of 1: GPU 0 .*no kernels for; use --gpus-per-worker 0"),
        ({"devices": (), "fault": "the NVIDIA driver supports CUDA 12.4 and torch 2.15.0 needs CUDA 13.2",
          "driver": "12.4"}, 1, "a driver for CUDA 13.2 or newer, or torch for older .*TORCH=cu126, .*or use"),
        ({"devices": (), "fault": "the NVIDIA driver supports CUDA 11.4 and torch 2.15.0 needs CUDA 13.2",
          "driver": "11.4"}, 1, "install a driver for CUDA 13.2 or newer, or use --gpus-per-worker 0"),
        ({"devices": (), "fault": "there is no driver", "driver": None}, 1, "install the NVIDIA driver and a torch"),
    ],
)  # fmt: skip
def test_gpus_that_torch_cannot_use_are_refused_with_the_cure(changes, needed, text):
    with pytest.raises(InsufficientResources, match=text) as caught:
        require_usable_gpus(DeviceReport(**{**vars(REPORT), **changes}), needed)

    assert "\n" not in str(caught.value)


def test_gpus_that_torch_can_use_are_enough():
    require_usable_gpus(DeviceReport(**{**vars(REPORT), "devices": (OLD, GOOD)}), 1)


def test_torch_is_asked_in_a_process_of_its_own():
    ask_torch.cache_clear()

    report = ask_torch()

    assert report.torch.startswith("2.")
    assert report.devices or report.fault


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("raise SystemExit(3)", "torch ends with exit code 3 when it looks for GPUs"),
        ("print('no JSON')", "torch ends with exit code 0"),
        ("print('{}')", "torch ends with exit code 0"),
        ("import os; os.abort()", "torch ends with exit code -6"),
        ("import time; time.sleep(60)", "torch does not answer within 0 s"),
    ],
)
def test_a_torch_that_gives_no_report_is_a_fault(monkeypatch, program, fault):
    monkeypatch.setattr(gpus, "PROBE", (sys.executable, "-I", "-S", "-c", program))
    monkeypatch.setattr(gpus, "PROBE_SECONDS", 0.4 if "sleep" in program else 60)
    ask_torch.cache_clear()

    report = ask_torch()

    assert fault in str(report.fault)
    with pytest.raises(InsufficientResources, match="torch"):
        require_usable_gpus(report, 1)


@pytest.fixture
def probed(monkeypatch):
    """A report of torch without a probe."""

    def use(report):
        monkeypatch.setattr("cluster.gpu_health.ask_torch", lambda: report)

    yield use
    ask_torch.cache_clear()


def test_doctor_names_the_gpus_and_their_free_memory(nvidia_smi, probed):
    probed(REPORT)

    found = {finding.check: finding for finding in check_processors()}

    assert "8 GPUs" in found["processors"].found
    assert found["torch"].found == "2.15.0 with CUDA 13.2, driver for CUDA 13.2"
    assert found["GPU 1"].found == "NVIDIA H100, compute capability 9.0, 79.0 of 80.0 GB free"
    assert found["shared memory"].found.endswith(" MiB")


def test_doctor_names_what_torch_cannot_use_with_the_cure(nvidia_smi, probed, monkeypatch, tmp_path):
    nvidia_smi("echo 'Exclusive_Process, Enabled'")
    probed(DeviceReport(**{**vars(REPORT), "devices": (OLD,)}))
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "absent")

    found = {finding.check: finding for finding in check_processors() if not finding.ok}

    assert found["GPU 0"].found.startswith("Tesla V100, compute capability 7.0: it has an architecture")
    assert found["GPU mode"].cure.startswith("run `nvidia-smi --compute-mode=DEFAULT`")
    assert "--shm-size" in found["shared memory"].cure
    assert all(finding.cure for finding in found.values())


@pytest.mark.parametrize(
    ("capability", "architectures", "is_older"),
    [
        ("7.0", ("sm_75", "sm_90"), True),
        ("9.0", ("sm_100", "sm_120"), True),
        ("10.0", ("sm_50", "sm_90"), False),
        ("7.0", (), False),
        ("", ("sm_75",), False),
    ],
)
def test_doctor_offers_torch_for_older_cards_only_for_older_cards(
    nvidia_smi, probed, capability, architectures, is_older
):
    device = replace(OLD, capability=capability)
    probed(replace(REPORT, architectures=architectures, devices=(device,)))

    cure = next(finding.cure for finding in check_processors() if finding.check == "GPU 0")

    assert ("TORCH=cu126" in cure) == is_older
    assert cure.startswith("hide it with CUDA_VISIBLE_DEVICES, ")


def test_doctor_names_a_limit_of_locked_memory_only_where_there_is_rdma(nvidia_smi, probed, monkeypatch, tmp_path):
    probed(REPORT)
    monkeypatch.setattr("cluster.gpu_health.RDMA_DEVICES", tmp_path / "infiniband")

    def locked_memory(limit):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
        return [finding for finding in check_processors() if finding.check == "locked memory"]

    without = locked_memory(8 << 20)
    (tmp_path / "infiniband").mkdir()
    (limited,), (unlimited,) = locked_memory(8 << 20), locked_memory(resource.RLIM_INFINITY)

    assert without == []
    assert (limited.ok, limited.found) == (False, "limited to 8192 KiB; RDMA fails")
    assert "LimitMEMLOCK=infinity" in limited.cure
    assert unlimited.ok


def test_doctor_says_that_the_driver_does_not_answer(nvidia_smi):
    nvidia_smi("exit 9")

    (finding,) = check_processors()

    assert (finding.ok, "exit code 9" in finding.found) == (False, True)
    assert "repair the NVIDIA driver" in finding.cure


def test_shared_memory_of_dockers_default_is_refused(monkeypatch, tmp_path):
    usage = type("Usage", (), {"total": 64 << 20})
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: usage)

    with pytest.raises(InsufficientResources, match=r"has 64 MiB and loader processes need 128 MiB; .*--shm-size 8g"):
        require_shared_memory(tmp_path)


@pytest.mark.parametrize(("requested", "workers", "each"), [("auto", 8, "auto"), ("auto", 9, 0), (1, 9, 1), (0, 2, 0)])
def test_the_demo_uses_cpus_where_there_are_fewer_gpus_than_workers_and_says_so(
    nvidia_smi, capsys, requested, workers, each
):
    assert _gpus_per_worker(requested, workers) == each
    assert ("Using CPUs" in "".join(capsys.readouterr())) == (workers == 9 and each == 0)
