"""What to do when a GPU has no memory left, by the kind of run and what it was doing."""

import socket
from typing import Any

import torch

from trainer.distributed.worker import WorkerContext
from trainer.errors import OutOfMemory
from trainer.specs import TrainOptions, TrainSpec
from trainer.specs.train import MIN_BATCH_NORM_IMAGES

OTHERS_SHARE = 0.05  # of a GPU's memory: less is what CUDA itself takes
GIGABYTE = 1e9


def out_of_memory(context: WorkerContext[Any]) -> OutOfMemory:
    """Return the error of a worker whose GPU has no memory left: what did not fit, and what helps this kind of run."""
    what, cure = _what_and_cure(context)
    device = context.process_group.device
    where = f"the memory of {device} on {socket.gethostname()} (worker {context.process_group.rank})"
    return OutOfMemory(f"{what} does not fit into {where}{_used_by_others(device)}; {cure}")


def _what_and_cure(context: WorkerContext[Any]) -> tuple[str, str]:
    spec, progress, workers = context.spec, context.progress, context.process_group.world_size
    if not isinstance(spec, TrainOptions):
        smaller = f"--batch-size {spec.batch_size // 2} or " if spec.kind == "predict" and spec.batch_size > 1 else ""
        return "the model with its images", f"use {smaller}--gpus-per-worker 0, which computes on the CPU"
    batch = f"{spec.batch_size} images over {workers} worker{'s' if workers > 1 else ''}"
    if spec.freeze != "all":
        parts = "" if spec.accumulate else "--accumulate, "
        return f"a training step of {batch}", f"use {_smaller_batch(spec)}, {parts}or freeze more with --freeze"
    if not spec.cache or spec.augment:
        return f"a batch of {batch}", f"use {_smaller_batch(spec)}"
    if progress.phase == "features" and progress.done < progress.total:
        return "the frozen backbone with its images", "use a smaller --image-size, or --gpus-per-worker 0"
    needs_features = isinstance(spec, TrainSpec) and (spec.folds is not None or not spec.trains_by_steps)
    without = "" if needs_features else "--no-cache, which reads the images again in each epoch, or "
    return (
        "what a head trains on, the features of all images,",
        f"use {without}--gpus-per-worker 0: a CPU trains a head fast",
    )


def _smaller_batch(spec: TrainOptions) -> str:
    """Return a batch size that the workers can share, or what helps where there is none."""
    half = spec.batch_size // 2 // spec.workers * spec.workers
    return (
        f"--batch-size {half} or more --workers"
        if half >= MIN_BATCH_NORM_IMAGES * spec.workers
        else "a smaller --image-size"
    )


def _used_by_others(device: torch.device) -> str:
    """Return how much memory other programs use, where that is known and matters."""
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    if others < OTHERS_SHARE * total:
        return ""
    return f", of which other programs use {others / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB"
