"""Measure frozen forward and fine-tuning on a GPU; the peer is timm's efficientnet_b0, eager and compiled.

Also measures the memory bandwidth. Both sides use bf16 and channels last, on images that are already on the GPU. Only
this benchmark needs timm: `pip install timm`. timm's weights are random, to avoid a download: only speed is compared.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tests.bench.data import require_xrays
from tests.bench.measure import Absent, Row, in_turn, row, seconds
from tests.bench.steps import CONFIG, Stepper, batch_of, pretrained
from trainer.data.transforms import normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.model.folded_backbone import FoldedBackbone

FORWARD_BATCH, STEP_BATCH = 256, 128
REPEATS = 20
PAIRS = 5
COPY_BYTES = 2**30
COMMAND = "python -m tests.bench gpu"


def run() -> list[Row]:
    """Measure on the first GPU."""
    if not torch.cuda.is_available():
        raise Absent("there is no GPU on this machine")
    if importlib.util.find_spec("timm") is None:
        raise Absent("timm is not installed")
    require_xrays()
    device = torch.device("cuda")
    roof = 2 * COPY_BYTES / _time_of(_copy(device)) / 1e9
    return [
        beside
        for compiled in (False, True)
        for beside in (_forward(device, compiled, roof), _finetuning(device, compiled))
    ]


def _forward(device: torch.device, compiled: bool, roof: float) -> Row:
    pixels = torch.randint(0, 256, (FORWARD_BATCH, 1, 224, 224), dtype=torch.uint8, device=device)
    normalise = partial(normalised, config=CONFIG)
    fast = FoldedBackbone(pretrained(device).eval().backbone, "bf16", device)
    theirs = _timm(compiled).eval().to(torch.bfloat16)

    @torch.no_grad()
    def peer() -> Tensor:
        return theirs(normalise(pixels).to(torch.bfloat16))

    note = f"a copy reads and writes {roof:.0f} GB/s on this GPU, the upper limit for a memory-bound network"
    return _row(
        lambda: fast(pixels, normalise), peer, FORWARD_BATCH, what="frozen forward, bf16", compiled=compiled, note=note
    )


def _finetuning(device: torch.device, compiled: bool) -> Row:
    images, labels = batch_of(STEP_BATCH, device)
    model = pretrained(device)
    ours = Stepper(model, ProcessGroup(0, 1, device), images, labels, bf16=True)
    theirs = nn.Sequential(_timm(compiled), nn.Linear(1280, 2).to(device)).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, fused=True)

    def peer() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(theirs(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _row(ours.step, peer, STEP_BATCH, what="fine-tuning step, bf16", compiled=compiled)


def _row(ours: Callable, peer: Callable, images: int, *, what: str, compiled: bool, note: str = "") -> Row:
    for work in (ours, peer):
        _time_of(work)  # warm-up: compiles, and selects the fastest kernels
    mine, theirs = in_turn(lambda: images / _time_of(ours), lambda: images / _time_of(peer), pairs=PAIRS)
    beside = f"timm efficientnet_b0, bf16, channels last, {'compiled' if compiled else 'eager'}"
    return row(
        mine, theirs, more_is_better=True, what=f"{what}, batch {images}", beside=beside, unit="images/s", goal=None,
        parity="the same layers and images; timm has random weights", command=COMMAND, note=note,
    )  # fmt: skip


def _timm(compiled: bool) -> nn.Module:
    import timm  # noqa: PLC0415 -- not a dependency of the project

    network = timm.create_model("efficientnet_b0", num_classes=0).to("cuda", memory_format=torch.channels_last)
    return torch.compile(network, mode="max-autotune") if compiled else network


def _copy(device: torch.device) -> Callable[[], object]:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _time_of(work: Callable[[], object]) -> float:
    """Return the mean seconds of one call over several calls; the GPU is synchronized before and after."""
    work()
    torch.cuda.synchronize()

    def several() -> None:
        for _ in range(REPEATS):
            work()
        torch.cuda.synchronize()

    return seconds(several) / REPEATS
