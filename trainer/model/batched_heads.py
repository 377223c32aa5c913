"""Several heads of one shape as one module, whose tensors have a first dimension for the heads."""

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.model.efficientnet import Head


class BatchedBatchNorm(nn.Module):
    """Batch norm of K heads, in training mode over the images of each."""

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norms: Sequence[nn.BatchNorm1d]) -> None:
        super().__init__()
        self.eps, self.momentum = norms[0].eps, cast("float", norms[0].momentum)
        _stack_state(self, norms)

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Return the normalised `(B, K, F)` rows; those that the mask `(B, K)` leaves out count for nothing."""
        if self.training:
            self.num_batches_tracked.add_(1)
        if mask is not None:
            return self._masked(rows, mask[:, :, None])
        found = functional.batch_norm(
            rows.reshape(len(rows), -1),
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.weight.reshape(-1),
            self.bias.reshape(-1),
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )
        return found.view(rows.shape)

    def _masked(self, rows: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(dim=0)  # (K, 1)
        mean = (rows * mask).sum(dim=0) / count
        centred = (rows - mean) * mask
        variance = centred.square().sum(dim=0) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return centred * (torch.rsqrt(variance + self.eps) * self.weight) + self.bias


class BatchedLinear(nn.Module):
    """The linear layers of K heads: `(B, K, inputs)` to `(B, K, outputs)`.

    The weight is `(K, inputs, outputs)`: the gradient of the transposed one would be copied into its layout.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        _stack_state(self, layers)
        self.weight = nn.Parameter(self.weight.detach().mT.contiguous())

    def forward(self, rows: Tensor) -> Tensor:
        """Return the outputs."""
        return torch.baddbmm(self.bias[:, None], rows.transpose(0, 1), self.weight).transpose(0, 1)


class BatchedHeads(nn.Module):
    """K heads, in training mode or, without a mask, in eval mode.

    Args:
        heads: Of one shape.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        for name, layer in heads[0].named_children():
            layers = [head.get_submodule(name) for head in heads]
            if isinstance(layer, nn.BatchNorm1d):
                self.add_module(name, BatchedBatchNorm(cast("list[nn.BatchNorm1d]", layers)))
            elif isinstance(layer, nn.Linear):
                self.add_module(name, BatchedLinear(cast("list[nn.Linear]", layers)))
            else:
                self.add_module(name, layer)

    def forward(self, features: Tensor, mask: Tensor | None, dropout: Tensor | None) -> Tensor:
        """Return the logits.

        Args:
            features: `(B, K, 1280)`.
            mask: `(B, K)`, 0 for places without an image; None where there are none.
            dropout: `(B, K, width / 4)`, the factors of dropout; None where nothing is dropped.

        Returns:
            `(B, K, classes)`.
        """
        rows = features
        for layer in self.children():
            if isinstance(layer, BatchedBatchNorm):
                rows = layer(rows, mask)
            elif isinstance(layer, nn.Dropout):
                rows = rows if dropout is None else rows * dropout
            else:
                rows = layer(rows)
        return rows

    def states(self) -> list[dict[str, Tensor]]:
        """Return the state dict of each head."""
        state = self.state_dict()
        count = len(next(iter(state.values())))
        return [
            {name: self.of_head(head, name, value).clone() for name, value in state.items()} for head in range(count)
        ]

    def of_head(self, head: int, name: str, stacked: Tensor) -> Tensor:
        """Return the part of a head, a view, of what all heads have for a parameter or buffer of that name."""
        return stacked[head].mT if name in self._transposed else stacked[head]

    @cached_property
    def _transposed(self) -> frozenset[str]:
        return frozenset(f"{name}.weight" for name, layer in self.named_children() if isinstance(layer, BatchedLinear))


def _stack_state(batched: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Give a module the parameters and buffers of several, stacked, under the same names."""
    for name, _ in modules[0].named_parameters():
        batched.register_parameter(
            name, nn.Parameter(torch.stack([module.get_parameter(name).detach() for module in modules]))
        )
    for name, _ in modules[0].named_buffers():
        batched.register_buffer(name, torch.stack([module.get_buffer(name) for module in modules]))
