"""Whether a step fits into the memory of a GPU; found out before the first one, and agreed on by all ranks."""

import logging
import math
from collections.abc import Callable

import torch
from torch import nn

from trainer.distributed.process_group import Ranks
from trainer.errors import OutOfMemory
from trainer.specs import TrainSpec

SMALLEST_PART = 2  # images of which a batch norm can take a deviation

# Of the size of what trains: Adam's two moments, and the buckets in which DDP exchanges gradients.
HELD_LATER = 3

logger = logging.getLogger(__name__)


def parts_of_step(spec: TrainSpec, ranks: Ranks, fits: Callable[[int], bool], smallest: int) -> int:
    """Return into how many parts each rank cuts its share of a step; every rank must call it.

    Args:
        spec: The training; with `accumulate` a step may be cut.
        ranks: All of them; the one with the least memory decides.
        fits: Whether so many images at once fit into this rank's memory.
        smallest: The smallest share of a step that any rank gets, in images.

    Raises:
        OutOfMemory: The step does not fit and may not be cut; or not even the smallest part of it fits.
    """
    share, parts = math.ceil(spec.batch_size / spec.workers), 1
    while any(ranks.total(float(not fits(math.ceil(share / parts))))):
        parts *= 2
        if smallest // parts < SMALLEST_PART:
            raise OutOfMemory(
                f"{math.ceil(2 * share / parts)} images at once do not fit into the memory of {ranks.device}; "
                "use a smaller --image-size, or freeze more stages with --freeze"
            )
    if parts > 1 and not spec.accumulate:
        workers = spec.workers
        raise OutOfMemory(
            f"a batch of {spec.batch_size} images over {workers} workers does not fit into the memory of "
            f"{ranks.device}; use --batch-size {max(2, share // parts) * workers}, which fits, or --accumulate to take "
            f"it in {parts} parts"
        )
    if parts > 1 and ranks.leads:
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
