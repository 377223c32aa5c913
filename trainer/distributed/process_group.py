"""The group of Ray Train workers: rank, world size, device, and collective operations."""

import socket
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from cluster.errors import InsufficientResources


class _OwnGpuBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray has no types
    """Ray's setup of torch's process group, with each worker seeing only its own GPU."""

    share_cuda_visible_devices = False


class GroupConfig(TorchConfig):  # type: ignore[misc]
    """Torch's process group, in which the GPU of a worker is always the only one that it sees.

    Ray would show a worker the GPUs of all workers of its machine, sorted as texts: 0, 1, 10, 11, 2. But torch binds
    NCCL to the GPU whose number is the local rank, which above ten GPUs is that of another worker.
    """

    @property
    def backend_cls(self) -> Any:
        """The setup of the process group."""
        return _OwnGpuBackend


@dataclass(frozen=True)
class ProcessGroup:
    """This worker's rank and device, and collectives over all workers; with one worker nothing is sent.

    Attributes:
        workers_on_node: The most workers that may share this machine: the local world size or its number of GPUs.
        is_whole: Whether it has all workers that Ray started, as Ray's own collectives need.
        sends_bf16: Whether gradients of a training in bfloat16 are sent as such, in half the bytes: between the GPUs of
            several nodes of Ray, where the network is slow.
    """

    rank: int
    world_size: int
    device: torch.device
    workers_on_node: int = 1
    is_whole: bool = True
    sends_bf16: bool = False

    @classmethod
    def of_this_worker(cls, *, on_cpu: bool) -> "ProcessGroup":
        """Return this worker's group. `on_cpu` ignores a GPU: Ray gives one to a single worker in any case.

        Raises:
            InsufficientResources: Ray gave it a GPU that torch cannot use.
        """
        if not on_cpu:
            _require_assigned_gpu()
        context = ray.train.get_context()
        device = torch.device("cpu") if on_cpu else ray.train.torch.get_device()
        here, world_size = context.get_local_world_size(), context.get_world_size()
        return cls(
            context.get_world_rank(),
            world_size,
            device,
            max(here, _gpus_here()),
            sends_bf16=device.type == "cuda" and here < world_size,
        )

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def dissolved(self) -> "ProcessGroup":
        """End torch's process group and return the group of this worker alone; every worker must call it.

        While torch's group exists, batch norms that train use it by themselves, and would wait for the other workers.
        """
        if dist.is_initialized():
            dist.destroy_process_group()
        return replace(self, rank=0, world_size=1, is_whole=self.world_size == 1)

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Return the sums of `values` over all workers; every worker must call it."""
        if self.world_size == 1:
            return list(values)
        return self.all_reduce_tensor(torch.tensor(values, dtype=torch.float64, device=self.device))

    def all_reduce_tensor(self, values: Tensor) -> list[float]:
        """Return the sums of the `(n,) float64` tensors of all workers, which are overwritten; all must call it."""
        dist.all_reduce(values)
        return [float(value) for value in values.tolist()]

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0; every worker must call it."""
        if self.world_size == 1:
            return value
        box = [value if self.is_rank_zero else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Concatenate the `(n, columns) float64` rows of all workers on the CPU, in the order of ranks."""
        if self.world_size == 1:
            return rows.cpu()
        counts = [int(n) for n in self.all_reduce_sum(*(len(rows) * (r == self.rank) for r in range(self.world_size)))]
        padded = rows.new_zeros((max(counts), rows.shape[1]), device=self.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]).cpu()

    def distributed(self, module: nn.Module, *, broadcasts_buffers: bool = True, in_bf16: bool = False) -> nn.Module:
        """Return the module in DistributedDataParallel (DDP), which averages gradients over ranks.

        Args:
            module: What trains.
            broadcasts_buffers: Before each forward pass that trains, all ranks take the buffers of rank 0.
            in_bf16: The module is computed in bfloat16; then its gradients are sent so where `sends_bf16`.
        """
        if self.world_size == 1:
            return module
        parallel = DistributedDataParallel(module, gradient_as_bucket_view=True)  # here, rank 0's buffers in any case
        parallel.broadcast_buffers = broadcasts_buffers  # the argument has another name in each version of torch
        if in_bf16 and self.sends_bf16:
            parallel.register_comm_hook(None, bf16_compress_hook)
        return parallel

    def barrier(self) -> None:
        """Wait until every worker has called this."""
        self.all_reduce_sum(0.0)


def _require_assigned_gpu() -> None:
    """Refuse to use the CPU instead of the GPU that Ray gave to this worker."""
    if ray.is_initialized() and ray.get_gpu_ids() and not torch.cuda.is_available():
        raise InsufficientResources(
            f"torch {torch.__version__} cannot use the GPU of the worker on {socket.gethostname()}; "
            "run `nightshift doctor` there: it names the fault, or use --gpus-per-worker 0 to run on CPUs"
        )


def _gpus_here() -> int:
    """Return the number of GPUs of this machine; CUDA shows a worker only its own."""
    if not ray.is_initialized():
        return torch.cuda.device_count()
    here = ray.get_runtime_context().get_node_id()
    return next((int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["NodeID"] == here), 0)
