"""Gradient accumulation: split a step that does not fit into GPU memory into micro-batches.

The number of micro-batches is chosen before the first step, and all ranks use the same one.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.data.batches import DeviceBatch
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import OutOfMemory
from trainer.evaluation.objective import SINGLE_LABEL, Objective
from trainer.model.precision import autocast
from trainer.specs import TrainSpec
from trainer.specs.train import MIN_BATCH_NORM_IMAGES

FEW_IMAGES = 64  # on a GPU: with fewer, it computes a layer faster than the CPU can ask for the next

# The memory test allocates this many copies of the trainable parameters, for what the first real step adds:
# Adam's two moments and DDP's gradient buckets.
EXTRA_PARAMETER_COPIES = 3

logger = logging.getLogger(__name__)


def warn_of_small_batches(spec: TrainSpec, process_group: ProcessGroup) -> None:
    """Say on rank 0 that GPUs get too few images in a step to be busy."""
    images = spec.batch_size // process_group.world_size
    if process_group.device.type != "cuda" or not process_group.is_rank_zero or images >= FEW_IMAGES:
        return
    fewer = " or fewer --workers" if process_group.world_size > 1 else ""
    logger.warning(
        "each GPU gets %d images in a step, and with fewer than %d it is often idle; a larger --batch-size%s is faster",
        *(images, FEW_IMAGES, fewer),
    )


def choose_micro_batches(
    spec: TrainSpec, process_group: ProcessGroup, fits: Callable[[int], bool], *, largest: int, smallest: int
) -> int:
    """Return the number of micro-batches per step; every rank must call this.

    Args:
        spec: The training; a step is only split with `accumulate`.
        process_group: All ranks; the one with the least memory decides.
        fits: Whether a forward and backward pass of that many images fits into this rank's memory.
        largest: The largest number of images that any rank gets in a step; tested is what the steps will have, because
            a GPU plans its kernels anew for each number.
        smallest: The smallest one.

    Raises:
        OutOfMemory: The step does not fit and must not be split, or not even the smallest micro-batch fits.
    """
    count = 1
    while any(process_group.all_reduce_sum(float(not fits(math.ceil(largest / count))))):
        count *= 2
        if smallest // count < MIN_BATCH_NORM_IMAGES:
            raise OutOfMemory(
                f"{math.ceil(2 * largest / count)} images at once do not fit into the memory of "
                f"{process_group.device}; use a smaller --image-size, or freeze more stages with --freeze"
            )
    if count > 1 and not spec.accumulate:
        workers = process_group.world_size
        fits_all = max(MIN_BATCH_NORM_IMAGES, largest // count) * workers
        fitting = (
            max(MIN_BATCH_NORM_IMAGES, fits_all // spec.workers) * spec.workers
        )  # a group that lacks workers keeps the spec's rule
        raise OutOfMemory(
            f"a batch of {spec.batch_size} images over {workers} workers does not fit into the memory of "
            f"{process_group.device}; use --batch-size {fitting}, which fits, or "
            f"--accumulate to split each step into {count} micro-batches"
        )
    if count > 1 and process_group.is_rank_zero:
        size = math.ceil(largest / count)
        logger.info("each step is split into %d micro-batches of at most %d images per worker", count, size)
    return count


def fits_in_memory(module: nn.Module, images: int, *, image_size: int, device: torch.device, precision: str) -> bool:
    """Return whether a forward and backward pass of `images` images fits; the module does not change."""
    was_training = module.training
    try:
        _run_trial_pass(module, images, image_size=image_size, device=device, precision=precision)
        fits = True
    except torch.OutOfMemoryError:
        fits = False
    module.train(was_training)
    module.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def _run_trial_pass(module: nn.Module, images: int, *, image_size: int, device: torch.device, precision: str) -> None:
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    reserved = [torch.empty_like(parameter) for parameter in trainable for _ in range(EXTRA_PARAMETER_COPIES)]
    module.train()
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()  # keeps the running statistics, does not wait for other ranks, and needs as much memory
    blank = torch.zeros(images, 3, image_size, image_size, device=device)
    with autocast(device, precision):
        logits = module(blank.contiguous(memory_format=torch.channels_last))
    torch.autograd.backward(logits.float().sum())
    reserved.clear()


def accumulate_gradients(
    model: nn.Module,
    batch: DeviceBatch,
    *,
    loss_weight: float,
    class_weights: Tensor | None,
    objective: Objective = SINGLE_LABEL,
    micro_batches: int = 1,
    precision: str = "fp32",
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Add a step's gradients to the parameters and return the sum of this rank's losses, () float64 on the device.

    The gradients do not depend on the number of micro-batches, and ranks exchange them once. The exception is batch
    norm that uses batch statistics: it normalises each micro-batch by itself (in the head: over all ranks).

    Args:
        model: The module that trains, or DDP around it.
        batch: This rank's samples; at least 2 per micro-batch where there is batch norm.
        loss_weight: Factor on each sample's loss.
        class_weights: Weights of the loss, float32, as `objective` takes them; None for equal ones.
        objective: Gives the loss of each sample.
        micro_batches: Number of forward and backward passes; equal on all ranks.
        precision: That the model is computed in.
        scaler: Scales the loss in float16; None: not scaled.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=batch.inputs.device)
    pairs = zip(batch.inputs.tensor_split(micro_batches), batch.labels.tensor_split(micro_batches), strict=True)
    for number, (inputs, labels) in enumerate(pairs, 1):
        with _gradient_sync(model, enabled=number == micro_batches):
            with autocast(inputs.device, precision):
                logits = model(inputs)  # (b, classes)
            losses = objective.losses(logits.float(), labels, class_weights)
            loss = losses.sum() * loss_weight
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        loss_sum += losses.detach().sum()
    return loss_sum


def _gradient_sync(model: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """Exchange gradients between ranks in this pass, or only accumulate them."""
    if enabled or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
