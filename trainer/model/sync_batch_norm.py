"""Synchronised batch norm for the head, on CPUs too: N workers train the head as one worker would."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTUM = 0.1  # of the running statistics; torch's default


class SyncBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` with mean and variance over the samples of all ranks in training mode.

    torch's SyncBatchNorm needs GPUs. Ranks may hold different numbers of samples; every sample has the same weight.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, momentum=MOMENTUM)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the normalised `(B, width) float32` rows."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(rows)
        wide = rows.double()  # the difference of two large sums loses precision in float32
        count = wide.new_full((1,), len(rows))
        sums: Tensor = _AllReduceSum.apply(torch.cat([wide.sum(0), wide.square().sum(0), count]))
        total = sums[-1]
        mean, square = sums[:-1].view(2, -1) / total  # (width,) each
        variance = (square - mean.square()).clamp_min(0)
        self._update_running_statistics(mean, variance * (total / (total - 1)))
        normal: Tensor = (wide - mean) * torch.rsqrt(variance + self.eps)
        return normal.to(rows.dtype) * self.weight + self.bias

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, unbiased: Tensor) -> None:
        """Update the running statistics as `nn.BatchNorm1d` does."""
        for running, found in ((self.running_mean, mean), (self.running_var, unbiased)):
            if running is not None:
                running.lerp_(found.to(running.dtype), MOMENTUM)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class _AllReduceSum(torch.autograd.Function):
    """All-reduce sum over ranks with a gradient: every rank's loss depends on it, so backward sums their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004 -- torch's signature
        """Return the sum of every rank's `values`."""
        sums = values.clone()
        dist.all_reduce(sums)
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004 -- torch's signature
        """Return the sum of every rank's gradient."""
        sums = gradients[0].contiguous().clone()
        dist.all_reduce(sums)
        return sums
