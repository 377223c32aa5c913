"""The gradients of one step, taken at once or in parts that fit into memory."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from trainer.data.batches import Step


def backward(
    model: nn.Module, step: Step, *, weight: float, class_weights: Tensor | None, parts: int = 1, autocast: bool = False
) -> float:
    """Add a step's gradients to those of the parameters and return this rank's part of the sum of its losses.

    The gradients are those of the whole step whatever the number of parts, and ranks exchange them once. Only a batch
    norm that takes the statistics of its batch sees a part at a time; those of the head see that part of all ranks.

    Args:
        model: What trains, or DDP around it.
        step: This rank's samples, at least 2 for each part where there are batch norms.
        weight: What each sample's loss counts.
        class_weights: `(classes,) float32`; None weighs all classes alike.
        parts: How many forward and backward passes; equal on all ranks.
        autocast: Compute the model in bf16.
    """
    total = 0.0
    pieces = zip(step.inputs.tensor_split(parts), step.labels.tensor_split(parts), strict=True)
    for number, (inputs, labels) in enumerate(pieces, 1):
        with _exchange(model, now=number == parts):
            with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=autocast):
                logits = model(inputs)  # (b, classes)
            losses = functional.cross_entropy(logits.float(), labels, class_weights, reduction="none")
            torch.autograd.backward(losses.sum() * weight)
        total += float(losses.detach().sum())
    return total


def _exchange(model: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Let ranks exchange their gradients with this pass, or only add them up for a later one."""
    if now or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
