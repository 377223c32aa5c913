"""Precision of a backbone: what the hardware computes fast, and what a run and a model use on it."""

import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from trainer.model.head import HeadConfig
from trainer.specs import Precision

if TYPE_CHECKING:
    from trainer.distributed.process_group import ProcessGroup  # it imports ray, which predict --now does not need

Computed: TypeAlias = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_CAPABILITY = (7, 0)  # of CUDA, from which on GPUs have fast float16: Volta and Turing, such as T4

logger = logging.getLogger(__name__)


def best_precision(device: torch.device, *, trains: bool) -> Computed:
    """Return the fastest precision that the hardware of `device` supports; `trains` says if the backbone trains.

    A backbone that trains on a CPU uses float32, so that its steps are reproducible bit for bit.
    """
    if device.type == "cuda":
        if _gpu_has_bf16():
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= FP16_CAPABILITY else "fp32"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 and not trains else "fp32"


def is_supported(precision: str, device: torch.device) -> bool:
    """Return whether `device` computes in this precision. A CPU computes bf16 without hardware for it too."""
    if precision == "bf16":
        return device.type == "cpu" or _gpu_has_bf16()
    return precision == "fp32" or device.type == "cuda"


def common_precision(requested: Precision, best: list[Computed]) -> Computed:
    """Return the precision of a run; "auto" is the best that all devices have.

    Args:
        requested: What the spec asks for.
        best: The best precision of each device, in any order.
    """
    if requested != "auto":
        return requested
    return min(best, key=("fp32", "fp16", "bf16").index)  # GPUs with bf16 have fp16 too


def usable_config(config: HeadConfig, group: "ProcessGroup") -> HeadConfig:
    """Return a published model's config with the precision that it is used with. Collective: every rank must call it.

    That is its own where the devices of all ranks support it, else float32, which is at least as exact.
    """
    if not any(group.all_reduce_sum(float(not is_supported(config.precision, group.device)))):
        return config
    if group.is_rank_zero:
        logger.warning("a device here does not compute in the model's precision %s; fp32 is used", config.precision)
    return config.model_copy(update={"precision": "fp32"})


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return a context in which a module with float32 weights computes in this precision."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def compute_in_float32() -> None:
    """Let GPUs compute float32 convolutions in this process as float32; torch's default rounds their inputs to TF32.

    Matrix products are float32 by default.
    """
    torch.backends.cudnn.allow_tf32 = False


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler | None:
    """Return what scales the loss, so that small gradients do not vanish in float16; None for other precisions."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def _gpu_has_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
