"""Batch norm over the whole step instead of one rank's part of it, so that N workers train the head as one would."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTUM = 0.1  # of the running statistics, torch's default


class SyncBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose mean and variance in training are those of the samples of all ranks together.

    torch's own SyncBatchNorm needs GPUs. Ranks may hold different numbers of samples; each counts alike.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, momentum=MOMENTUM)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the normalised `(B, width) float32` rows."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(rows)
        wide = rows.double()  # the difference of two sums below would lose float32's digits
        count = wide.new_full((1,), len(rows))
        sums: Tensor = _Sum.apply(torch.cat([wide.sum(0), wide.square().sum(0), count]))
        total = sums[-1]
        mean, square = sums[:-1].view(2, -1) / total  # (width,) each
        variance = (square - mean.square()).clamp_min(0)
        self._follow(mean, variance * (total / (total - 1)))
        normal: Tensor = (wide - mean) * torch.rsqrt(variance + self.eps)
        return normal.to(rows.dtype) * self.weight + self.bias

    @torch.no_grad()
    def _follow(self, mean: Tensor, unbiased: Tensor) -> None:
        """Move the running statistics as `nn.BatchNorm1d` does."""
        for running, found in ((self.running_mean, mean), (self.running_var, unbiased)):
            if running is not None:
                running.lerp_(found.to(running.dtype), MOMENTUM)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class _Sum(torch.autograd.Function):
    """The sum over ranks. Each rank's loss depends on it, so its gradient is the sum of theirs."""

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
