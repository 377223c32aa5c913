"""AdamW with separate learning rates for head and backbone, its schedule, and its state as tensors."""

import math
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 0.2  # fraction of all steps; a new head's batch norm and random weights need it to settle
SCALER_STATE = ("scale", "_growth_tracker")  # torch's names: the factor, and steps since it last changed
START, END = 0.04, 1e-4  # fractions of the peak, as in the one-cycle schedule, Smith & Topin 2018


def build_optimizer(
    head: nn.Module, backbone: nn.Module | None, *, backbone_factor: float, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW over the head and the trainable backbone parameters, which get `backbone_factor` x the head's lr."""
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "factor": 1.0}]
    trainable = [] if backbone is None else [p for p in backbone.parameters() if p.requires_grad]
    if trainable:
        groups.append({"params": trainable, "factor": backbone_factor})
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=device.type in ("cpu", "cuda"))


def import_compiler() -> None:
    """Let torch import its compiler, which takes seconds, before processes are forked that would each import it.

    Every process that creates an optimizer does.
    """
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def set_lr(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> float:
    """Set the learning rates for `step` of `steps` and return the head's."""
    lr = peak * lr_factor(step, steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
    return lr


def lr_factor(step: int, steps: int) -> float:
    """Return the fraction of the peak learning rate: a cosine warm-up to 1, then cosine annealing to almost 0."""
    warm_up = max(1.0, WARM_UP * steps)
    if step < warm_up:
        return _cosine(START, 1.0, step / warm_up)
    return _cosine(1.0, END, min(1.0, (step - warm_up) / max(1.0, steps - 1 - warm_up)))


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state as tensors named `parameter.name`; learning rates follow from the step and are not saved."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned.

    A file holds values, not the memory layout. Each moment gets the strides of its parameter (channels_last for the
    weights of convolutions), as it had before: fused kernels walk both in memory order.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = _like(parameters[int(number)], value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the strides of the parameter; the step counter, a scalar, as it is."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def scaler_tensors(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    """Return the state of a gradient scaler that changes."""
    state = scaler.state_dict()
    return {name: torch.tensor(float(state[name]), dtype=torch.float64) for name in SCALER_STATE}


def load_scaler(scaler: torch.amp.GradScaler, tensors: dict[str, Tensor]) -> None:
    """Load what `scaler_tensors` returned."""
    scale, steps = (float(tensors[name]) for name in SCALER_STATE)
    scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": int(steps)})
