"""Whether a step fits into the memory of a GPU; found out before the first one, and agreed on by all ranks."""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from trainer.data.batches import Step
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import OutOfMemory
from trainer.specs import TrainSpec

SMALLEST_PART = 2  # images of which a batch norm can take a deviation

# Of the size of what trains: Adam's two moments, and the buckets in which DDP exchanges gradients.
HELD_LATER = 3

logger = logging.getLogger(__name__)


def parts_of_step(spec: TrainSpec, process_group: ProcessGroup, fits: Callable[[int], bool], smallest: int) -> int:
    """Return into how many parts each rank cuts its share of a step; every rank must call it.

    Args:
        spec: The training; with `accumulate` a step may be cut.
        process_group: All of them; the one with the least memory decides.
        fits: Whether so many images at once fit into this rank's memory.
        smallest: The smallest share of a step that any rank gets, in images.

    Raises:
        OutOfMemory: The step does not fit and may not be cut; or not even the smallest part of it fits.
    """
    share, parts = math.ceil(spec.batch_size / spec.workers), 1
    while any(process_group.all_reduce_sum(float(not fits(math.ceil(share / parts))))):
        parts *= 2
        if smallest // parts < SMALLEST_PART:
            raise OutOfMemory(
                f"{math.ceil(2 * share / parts)} images at once do not fit into the memory of {process_group.device}; "
                "use a smaller --image-size, or freeze more stages with --freeze"
            )
    if parts > 1 and not spec.accumulate:
        workers = spec.workers
        raise OutOfMemory(
            f"a batch of {spec.batch_size} images over {workers} workers does not fit into the memory of "
            f"{process_group.device}; use --batch-size {max(2, share // parts) * workers}, which fits, or --accumulate "
            f"to take it in {parts} parts"
        )
    if parts > 1 and process_group.is_leader:
        logger.info("each step is taken in %d parts of at most %d images a worker", parts, math.ceil(share / parts))
    return parts


def fits_into_memory(module: nn.Module, images: int, *, image_size: int, device: torch.device, autocast: bool) -> bool:
    """Return whether a forward and a backward pass of so many images fit; nothing in the module moves."""
    was_training = module.training
    try:
        _try(module, images, image_size=image_size, device=device, autocast=autocast)
        found = True
    except torch.OutOfMemoryError:
        found = False
    module.train(was_training)
    module.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _try(module: nn.Module, images: int, *, image_size: int, device: torch.device, autocast: bool) -> None:
    learns = [parameter for parameter in module.parameters() if parameter.requires_grad]
    held = [torch.empty_like(parameter) for parameter in learns for _ in range(HELD_LATER)]
    module.train()
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()  # neither moves its statistics nor waits for other ranks, and needs as much memory
    blank = torch.zeros(images, 3, image_size, image_size, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        logits = module(blank.contiguous(memory_format=torch.channels_last))
    torch.autograd.backward(logits.float().sum())
    held.clear()


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
