"""Adam over what trains, with a rate of its own for the backbone, as tensors that a checkpoint can hold."""

import math
from typing import Any

import torch
from torch import Tensor, nn


def build_optimizer(
    head: nn.Module, backbone: nn.Module | None, *, backbone_factor: float, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW over the head and what trains of the backbone, at `backbone_factor` of the head's rate."""
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "factor": 1.0}]
    trainable = [] if backbone is None else [p for p in backbone.parameters() if p.requires_grad]
    if trainable:
        groups.append({"params": trainable, "factor": backbone_factor})
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=device.type in ("cpu", "cuda"))


def set_lr(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> float:
    """Set the rates of this step and return the head's."""
    lr = peak * lr_factor(step, steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
    return lr


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state as tensors named `parameter.name`; rates are functions of the step and need no saving."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


WARM_UP = 0.2  # of all steps; a fresh batch-normed head and random weights both settle in it
START, END = 0.04, 1e-4  # of the peak; the ends of the one-cycle schedule, Smith & Topin 2018


def lr_factor(step: int, steps: int) -> float:
    """Return the part of the peak rate at `step` of `steps`: a cosine up to 1, then a cosine down to almost 0."""
    warm = max(1.0, WARM_UP * steps)
    if step < warm:
        return _cosine(START, 1.0, step / warm)
    return _cosine(1.0, END, min(1.0, (step - warm) / max(1.0, steps - 1 - warm)))


def _cosine(first: float, last: float, part: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2
