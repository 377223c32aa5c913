"""Heads of a search as one model: each has a slot in tensors whose first dimension is for the heads.

The heads may differ in width, learning rate, weight decay and dropout. A head narrower than the slots has zeros in the
rest of its slot, whose gradients are zero too. What a step does is given to it in tensors on the device, and it waits
for nothing there: so a GPU can be given many steps ahead.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from trainer.data.split_features import FeatureRows
from trainer.evaluation.objective import Objective, objective_of
from trainer.evaluation.scoring import BATCH
from trainer.model.batched_heads import BatchedHeads
from trainer.model.efficientnet import Head, build_head
from trainer.model.head import HeadConfig
from trainer.training.checkpointer import TrainingCheckpoint
from trainer.training.loop import MAX_GRADIENT_NORM


@dataclass(frozen=True)
class StackStep:
    """What a step of K heads takes, on the device.

    Attributes:
        features: `(B, K, 1280) float32`.
        labels: `(B * K,) int64` classes, or `(B * K, C) int64` targets.
        dropout: `(B, K, width / 4) float32`, factors; None where nothing is dropped.
        lr: `(K,) float32`, learning rates.
        decay: `(K,) float32`, decays of the EMA.
    """

    features: Tensor
    labels: Tensor
    dropout: Tensor | None
    lr: Tensor
    decay: Tensor


class HeadStack:
    """K slots for heads with their optimizers and EMA; those without a head have zeros.

    Args:
        config: Of the model, with the largest width of a head.
        count: K.
        has_ema: Whether the heads have an EMA.
        class_weights: Weights of the loss, as the objective takes them; None for equal ones.
        device: Of the heads.
    """

    def __init__(
        self, config: HeadConfig, count: int, *, has_ema: bool, class_weights: Tensor | None, device: torch.device
    ) -> None:
        self.count, self.width, self.device, self.class_weights = count, config.width, device, class_weights
        self.objective: Objective = objective_of(config.multi_label)
        self.model = _Stacked(config, count, device)
        self.average = _Stacked(config, count, device) if has_ema else None
        self.steps = torch.zeros(count, device=device)
        self.weight_decays = torch.zeros(count, device=device)
        self.decays_weights = False
        self.means, self.squares = (torch.zeros_like(self.model.values) for _ in range(2))
        self.gradients, self.updates = (torch.zeros_like(self.model.values) for _ in range(2))
        self.optimizer = self._optimizer()

    def put(self, slot: int, head: TrainingCheckpoint) -> None:
        """Copy a head into a slot."""
        for tensor in self._all():
            tensor[slot] = 0
        for stacked, own in self._pairs(slot, head):
            stacked.copy_(own)
        weight_decay = float(head.optimizer.param_groups[0]["weight_decay"])
        self.weight_decays[slot] = weight_decay
        self.decays_weights = self.decays_weights or weight_decay > 0

    def take(self, slot: int, head: TrainingCheckpoint) -> None:
        """Copy what is in a slot into its head."""
        for stacked, own in self._pairs(slot, head):
            own.copy_(stacked)
        if head.ema.averaged is not None:
            head.ema.averaged.n_averaged.fill_(head.ema.updates)

    def step(self, step: StackStep) -> Tensor:
        """Train a step and return the sum of the losses of each head, `(K,) float64`."""
        images = len(step.features)
        logits = self.model.module(step.features, None, step.dropout)
        losses = self.objective.losses(logits.flatten(0, 1), step.labels, self.class_weights).view(images, self.count)
        found = torch.autograd.grad((losses.sum(dim=0) / images).sum(), self.model.parameters)
        torch.cat([gradient.flatten(1) for gradient in found], dim=1, out=self.gradients)
        self._update(step)
        return losses.detach().double().sum(dim=0)

    @torch.no_grad()
    def logits(self, features: FeatureRows) -> Tensor:
        """Return the logits of each head for each row of features `(N, 1280)`, `(N, K, C) float64` on the CPU."""
        module = (self.average or self.model).module.eval()
        parts = [
            module(features[start : start + BATCH].to(self.device)[:, None].expand(-1, self.count, -1), None, None)
            for start in range(0, len(features), BATCH)
        ]
        module.train()
        return torch.cat(parts).double().cpu()

    @torch.no_grad()
    def _update(self, step: StackStep) -> None:
        """Clip the gradients of each head, take a step of its optimizer and update its EMA."""
        norms = torch.linalg.vector_norm(self.gradients, dim=1)  # (K,)
        self.gradients.mul_((MAX_GRADIENT_NORM / (norms + 1e-6)).clamp(max=1.0)[:, None])
        self.updates.zero_()
        self.optimizer.step()
        if self.decays_weights:
            self.model.values.mul_((1 - step.lr * self.weight_decays)[:, None])
        self.model.values.addcmul_(self.updates, step.lr[:, None])
        if self.average is not None:
            for average, source in zip(self.average.changing, self.model.changing, strict=True):
                if average.is_floating_point():
                    average.lerp_(source, (1 - step.decay)[:, None])
                else:
                    average.copy_(source)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW without weight decay over the updates of a step, one of each head, with a learning rate of 1.

        It has one learning rate for all: so its steps start from zero, and are multiplied by those of the heads.
        """
        rows = [nn.Parameter(row) for row in self.updates]
        optimizer = torch.optim.AdamW(rows, lr=1.0, weight_decay=0.0, fused=True)
        for row, gradient, step, mean, square in zip(
            rows, self.gradients, self.steps, self.means, self.squares, strict=True
        ):
            row.grad = gradient
            optimizer.state[row] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        return optimizer

    def _all(self) -> list[Tensor]:
        """Return all tensors with slots."""
        average = [] if self.average is None else self.average.changing
        return [*self.model.changing, *average, self.means, self.squares, self.steps, self.weight_decays]

    def _pairs(self, slot: int, head: TrainingCheckpoint) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each part of the slot with the tensor of the head."""
        yield from self.model.pairs(slot, self.model.named(), head.module.state_dict())
        if self.average is not None:
            yield from self.model.pairs(slot, self.average.named(), head.ema.module.state_dict())
        states = _optimizer_states(head)
        for flat, name in ((self.means, "exp_avg"), (self.squares, "exp_avg_sq")):
            own = {parameter: state[name] for parameter, state in states.items()}
            yield from self.model.pairs(slot, self.model.parts_of(flat), own)
        for state in states.values():
            yield self.steps[slot], state["step"]


class _Stacked:
    """The module of K heads whose parameters are parts of one tensor.

    Attributes:
        values: `(K, P)`, all parameters.
        changing: It and the buffers: all that a step changes.
    """

    def __init__(self, config: HeadConfig, count: int, device: torch.device) -> None:
        head = cast("Head", build_head(config))
        self.module = BatchedHeads([head] * count).to(device)
        self.parameters = list(self.module.parameters())
        self.names = [name for name, _ in self.module.named_parameters()]
        self.values = torch.zeros(count, sum(one[0].numel() for one in self.parameters), device=device)
        for parameter, part in zip(self.parameters, self.parts_of(self.values).values(), strict=True):
            parameter.data = part
        buffers = list(self.module.buffers())
        for buffer in buffers:
            buffer.zero_()
        self.changing = [self.values, *buffers]

    def named(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name."""
        return self.module.state_dict()

    def parts_of(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a tensor like `values` in the shapes of the parameters."""
        parts = torch.split(flat, [one[0].numel() for one in self.parameters], dim=1)
        return {name: part.view(one.shape) for name, one, part in zip(self.names, self.parameters, parts, strict=True)}

    def pairs(
        self, slot: int, stacked: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the part of a slot that a head uses with the tensor of the head, for each name."""
        for name, tensor in own.items():
            part = self.module.of_head(slot, name, stacked[name])
            yield part[tuple(slice(size) for size in tensor.shape)], tensor


def _optimizer_states(head: TrainingCheckpoint) -> dict[str, dict[str, Tensor]]:
    """Return the state of the optimizer by the name of the parameter; before the first step it is zero."""
    found = {}
    for name, parameter in head.module.named_parameters():
        state = head.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        found[name] = state
    return found
