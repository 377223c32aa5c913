"""GPUs that a run on this machine leases and shows to CUDA; no GPU is needed."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from ray.air._internal.device_manager.nvidia_gpu import CUDATorchDeviceManager
from ray.train import ScalingConfig
from ray.train.v2._internal.callbacks.accelerators import AcceleratorSetupCallback

from cluster.errors import InsufficientResources
from cluster.gpu_lease import GpuRequest, wait_for_gpus
from cluster.gpus import DeviceReport, TorchDevice
from cluster.settings import Settings
from cluster.stop_request import StopRequest
from tests.gpu.leases import release_gpus
from tests.trained import new_run, train_spec
from trainer.attempt import Attempt
from trainer.distributed import local_gpus
from trainer.distributed.local_gpus import gpus_of_machine, lease_local_gpus
from trainer.distributed.process_group import GroupConfig, ProcessGroup
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import Stopped
from trainer.search.tune_driver import useful_gpus
from trainer.specs import SearchSpec, build

GPUS = ("GPU-0", "GPU-1", "GPU-2", "GPU-3")
GOOD = TorchDevice(name="NVIDIA H100", capability="9.0")
BAD = TorchDevice(name="NVIDIA H100", capability="9.0", fault="has an uncorrectable memory error")


class Host:
    """A machine of four GPUs, of which those in `broken` run no kernel."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.broken = folder, set()
        program = folder / "bin/nvidia-smi"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\necho " + "; echo ".join(GPUS) + "\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(GPUS))
        monkeypatch.setattr(local_gpus, "probe_gpus", self.probe_gpus)
        monkeypatch.setattr(local_gpus, "require_shared_memory", lambda: None)
        monkeypatch.setattr("cluster.resources.cpu_count", lambda: 64)
        self.monkeypatch = monkeypatch
        self.new_process()

    def new_process(self):
        self.monkeypatch.setattr(local_gpus, "_held", local_gpus._Held())
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(GPUS)

    def probe_gpus(self, uuids):
        return DeviceReport(torch="2.15", devices=tuple(BAD if uuid in self.broken else GOOD for uuid in uuids))

    def attempt(self, name, **settings):
        spec = train_spec("x")
        settings = Settings(storage=self.folder, gpu_locks=self.folder / "locks", **settings)
        return Attempt.of(new_run(self.folder, spec, name).folder, None, settings)

    def lease(self, name, workers=1, **options):
        most = options.pop("most", None)
        spec = train_spec("x", workers=workers, **{"batch_size": 32} | options)
        return lease_local_gpus(self.attempt(name), spec, most=most)

    def others_hold(self, count):
        request = GpuRequest(uuids=GPUS, need=count, most=count)
        return wait_for_gpus(self.folder / "locks", request, pytest.fail, limit_seconds=1)


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def test_the_log_names_the_gpus_of_a_run(host, caplog):
    with caplog.at_level("INFO"):
        host.lease("a", workers=2)

    assert caplog.messages == ["runs on NVIDIA H100 (GPU-0), NVIDIA H100 (GPU-1)"]


def test_runs_of_one_worker_get_different_gpus_and_see_no_other(host):
    shown = []
    for name in "abcd":
        host.new_process()
        machine, per_worker = host.lease(name)
        shown.append(os.environ["CUDA_VISIBLE_DEVICES"])
        assert (machine.gpus, per_worker, gpus_of_machine()) == (1, 1, 4)

    assert shown == list(GPUS)


def test_a_run_of_several_workers_starts_a_ray_that_has_only_its_gpus(host):
    other = host.others_hold(1)

    machine, _ = host.lease("a", workers=2)

    assert (machine.gpus, machine.cpus, other.uuids) == (2, 64, ("GPU-0",))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"


def test_only_visible_gpus_are_leased(host):
    os.environ["CUDA_VISIBLE_DEVICES"] = "3,1"

    host.lease("a", workers=2)

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-3,GPU-1"


def test_a_second_part_of_a_run_keeps_its_gpus_and_a_larger_one_leases_more(host):
    host.lease("a")
    host.lease("b")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-0"

    machine, _ = host.lease("c", workers=3, batch_size=30)

    assert machine.gpus == 3
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1,GPU-2"
    with pytest.raises(InsufficientResources, match="5 workers need 5 GPUs and this machine has 4; use --workers 4"):
        host.lease("d", workers=5, batch_size=40)


def test_the_tests_of_gpus_release_what_a_run_in_their_process_has_leased(host):
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    host.lease("a", workers=2)

    release_gpus(visible)

    assert host.others_hold(4).uuids == GPUS
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_a_search_takes_the_gpus_that_are_free(host):
    host.others_hold(1)

    machine, _ = host.lease("a", most=8)

    assert machine.gpus == 3


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({"trials": 32}, 2),
        ({"trials": 32, "concurrency": 5}, 1),
        ({"trials": 32, "concurrency": 5, "folds": 5}, 2),
        ({"trials": 3, "freeze": "none"}, 3),
        ({"trials": 9, "freeze": "none", "concurrency": 2, "workers": 2}, 4),
    ],
)
def test_a_search_leases_no_more_gpus_than_its_trials_can_use(options, gpus):
    assert useful_gpus(build(SearchSpec, shards="x", **options)) == gpus


def test_a_run_on_cpus_leases_and_hides_nothing(host):
    machine, per_worker = host.lease("a", gpus_per_worker=0)

    assert (machine.gpus, per_worker) == (0, 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(GPUS)
    assert not (host.folder / "locks").exists()


TRAINER_BESIDE_A_BUSY_GPU = """
import os, sys
import torch

def is_available():
    return os.environ.get("CUDA_VISIBLE_DEVICES") != ""

def starts_cuda():
    def start(*_):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")
    return start

torch.cuda.is_available = is_available
torch.cuda.current_device, torch.cuda.set_device, torch.accelerator.current_stream = (starts_cuda() for _ in range(3))
torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda") if is_available() else None
from trainer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "options",
    [{"freeze": "none", "epochs": 1}, {"folds": 2, "epochs": 1, "head_width": 512, "patience": 10}],
    ids=["here", "in forks"],
)
def test_a_training_on_cpus_starts_cuda_neither_in_its_process_nor_in_its_forks(tmp_path, digits_shards, options):
    spec = train_spec(digits_shards, gpus_per_worker=0, **options)
    paths = new_run(tmp_path, spec)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}

    trainer = subprocess.run(
        [sys.executable, "-c", TRAINER_BESIDE_A_BUSY_GPU, str(paths.folder)],
        env={**environment, "NIGHTSHIFT_STORAGE": str(tmp_path), "OMP_NUM_THREADS": "2"},  # as many forks
        check=False,
        capture_output=True,
        text=True,
    )

    assert trainer.returncode == 0, trainer.stderr
    assert "died" not in trainer.stderr


def test_a_wait_is_a_phase_of_the_run_and_ends_with_it(host, monkeypatch):
    other = host.others_hold(3)
    phases = []
    spec = train_spec("x", workers=2, batch_size=32)
    attempt = host.attempt("a")

    def pass_time(seconds):
        phases.append(json.loads(attempt.paths.progress.read_text())["phase"])
        other.release(other.uuids[:1])

    monkeypatch.setitem(wait_for_gpus.__kwdefaults__, "pause", pass_time)
    lease_local_gpus(attempt, spec)

    assert phases == ["waiting for 2 GPUs (1 free)"]
    assert json.loads(attempt.paths.progress.read_text())["phase"] == "starting"


def test_a_run_that_waits_can_be_stopped(host):
    host.others_hold(4)
    attempt = host.attempt("a")
    StopRequest("cancel", attempt.number).publish(attempt.paths.stop)

    with pytest.raises(Stopped, match=r"stopped \(cancel\) while waiting for 1 GPU \(0 free\)"):
        lease_local_gpus(attempt, train_spec("x"))


def test_a_broken_gpu_is_left_out_and_does_not_fail_one_run_after_another(host, caplog):
    host.broken = {"GPU-0"}

    host.lease("a")

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "GPU GPU-0 (NVIDIA H100) is left out: it has an uncorrectable memory error" in caplog.text


def test_too_few_gpus_that_torch_can_use_are_refused_and_released(host):
    host.broken = {"GPU-0", "GPU-1", "GPU-2"}

    with pytest.raises(InsufficientResources, match=r"2 GPUs are needed and torch can use 1 of 2: GPU 0 \(NVIDIA H100"):
        host.lease("a", workers=2)

    assert host.others_hold(4).uuids == GPUS


@pytest.mark.parametrize("ids", [[str(gpu) for gpu in range(12)], [f"GPU-{gpu:x}" for gpu in reversed(range(12))]])
def test_every_worker_sees_only_its_own_gpu_so_nccl_and_torch_take_the_same_one(monkeypatch, ids):
    torch_devices, nccl_devices = [], []
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")))
    callback = AcceleratorSetupCallback(GroupConfig(), ScalingConfig(num_workers=len(ids), use_gpu=True))

    for local_rank, gpu in enumerate(ids):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)  # as Ray sets it for each worker
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        monkeypatch.setattr("ray.get_gpu_ids", lambda gpu=gpu: [gpu])
        torch_devices += [device.index for device in CUDATorchDeviceManager().get_devices()]
        nccl_devices.append(nccl_device())

    assert callback.before_init_train_context(["a worker that is not asked for its GPUs"]) == {}
    assert torch_devices == nccl_devices == [0] * len(ids)


def nccl_device():
    """Return the number of the GPU that torch binds NCCL to."""
    import torch.distributed.distributed_c10d as c10d  # noqa: PLC0415

    if not hasattr(c10d, "_nccl2_device"):
        return 0  # a torch whose NCCL is not bound to a device
    options = type("Options", (), {"enable_reconfigure": False, "process_group": None})
    return c10d._nccl2_device(options).index


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 3), ("cpu", 0)])
def test_the_progress_states_the_gpus_of_all_workers(tmp_path, monkeypatch, device, gpus):
    monkeypatch.setattr(ProcessGroup, "of_this_worker", lambda on_cpu: ProcessGroup(0, 3, torch.device(device)))
    monkeypatch.setattr("trainer.distributed.worker.require_shared_memory", lambda: None)
    attempt = Attempt.of(new_run(tmp_path, train_spec("x")).folder, None, Settings(storage=tmp_path))

    WorkerContext.of(WorkerTask(attempt=attempt, spec=train_spec("x"), source=None)).progress.write()

    assert json.loads(attempt.paths.progress.read_text())["gpus"] == gpus
