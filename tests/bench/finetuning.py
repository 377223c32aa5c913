"""Measure images/s of a fine-tuning step of all layers; the peer is unmodified efficientnet_pytorch."""

import torch

from tests.bench.data import WEIGHTS, require_xrays
from tests.bench.measure import Row, in_turn, row, seconds
from tests.bench.peers import finetuning as peers
from tests.bench.peers.training import head
from tests.bench.steps import BACKBONE_FACTOR, FIRST_LR, Stepper, batch_of, pretrained
from trainer.data.batches import step_seed
from trainer.distributed.process_group import ProcessGroup

BATCH = 16
PAIRS = 5
GOALS = {"float32": 1.25, "bf16": 1.6}
COMMAND = "python -m tests.bench finetuning"
NOTES = {  # torch.profiler, one thread, batch 8
    "float32": "ours uses channels last, SiLU instead of the memory-efficient swish, and fused AdamW",
    "bf16": "the backward pass of the convolutions is 59 % of a bf16 step and 33 % of a float32 step: it is not "
    "faster in bf16 on a CPU, where `--precision auto` trains a backbone in float32",
}


def run(*, batch: int = BATCH, pairs: int = PAIRS) -> list[Row]:
    """Measure both precisions, each with its own runs of the peer."""
    require_xrays()
    return [_measured(precision, batch, pairs) for precision in GOALS]


def _measured(precision: str, batch: int, pairs: int) -> Row:
    device = torch.device("cpu")
    images, labels = batch_of(batch, device)
    model = pretrained(device)
    top = head(512, 0.0, 2)
    top.load_state_dict(model.head.state_dict())
    peer = peers.stepper(WEIGHTS, top, lr=FIRST_LR, backbone_lr=FIRST_LR * BACKBONE_FACTOR)
    ours = Stepper(model, ProcessGroup(0, 1, device), images, labels, bf16=precision == "bf16")
    plain = images.contiguous()
    losses = []
    for step in range(2):  # also the warm-up; the seed gives stochastic depth the same random numbers as in our step
        torch.manual_seed(step_seed(0, step, 0))
        losses.append(peer(plain, labels))
        ours.step()
    mine, theirs = in_turn(
        lambda: batch / seconds(ours.step), lambda: batch / seconds(lambda: peer(plain, labels)), pairs=pairs
    )
    pairs_of_losses = ", ".join(f"{a:.4f} and {b:.4f}" for a, b in zip(ours.losses, losses, strict=False))
    draws = "; bf16 drops different connections (stochastic depth)" if ours.bf16 else ""
    return row(
        mine, theirs, more_is_better=True, what=f"fine-tuning step, all layers, {precision}, batch {batch}",
        beside="unmodified efficientnet_pytorch, eager float32", unit="images/s", goal=GOALS[precision],
        parity=f"losses of the first steps: {pairs_of_losses}{draws}", command=COMMAND,
        note=NOTES[precision],
    )  # fmt: skip
