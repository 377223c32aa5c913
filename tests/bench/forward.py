"""Measure images/s of the frozen forward pass, from uint8 to features; the peer is unmodified efficientnet_pytorch."""

from functools import partial

import torch

from tests.bench.data import WEIGHTS, require_xrays
from tests.bench.measure import Row, in_turn, row, seconds
from tests.bench.peers.training import backbone
from trainer.data.transforms import normalised
from trainer.model.efficientnet import Backbone
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig
from trainer.model.precision import best_precision
from trainer.model.weights import load_backbone, read_weights

IMAGES = 64
PAIRS = 5
GOAL = 3.0
COMMAND = "python -m tests.bench forward"


def run() -> list[Row]:
    """Measure the precision that `auto` selects on this machine, and float32."""
    require_xrays()
    device = torch.device("cpu")
    config = HeadConfig(classes=("a", "b"), width=512, dropout=0.4, image_size=224)
    normalise = partial(normalised, config=config)
    images = torch.randint(0, 256, (IMAGES, 1, 224, 224), dtype=torch.uint8)
    theirs = backbone(WEIGHTS)
    mine = Backbone(224).eval()
    load_backbone(mine, read_weights(WEIGHTS))
    rows = []
    for precision in dict.fromkeys([best_precision(device, trains=False), "fp32"]):
        fast = FoldedBackbone(mine, precision, device)
        expected = _peer(theirs, normalise(images[:32]))
        found = fast(images[:32], normalise)
        error = float((found - expected).norm() / expected.norm())
        ours, peer = in_turn(
            lambda fast=fast: IMAGES / seconds(lambda: fast(images, normalise)),
            lambda: IMAGES / seconds(lambda: [_peer(theirs, normalise(part)) for part in images.split(32)]),
            pairs=PAIRS,
        )
        words = {"unit": "images/s", "goal": GOAL, "command": COMMAND, "more_is_better": True}
        beside = "unmodified efficientnet_pytorch, eager float32, batch 32"
        parity = f"relative error of the features {error:.1e}"
        rows.append(row(ours, peer, what=f"frozen forward, {precision}", beside=beside, parity=parity, **words))
    return rows


@torch.no_grad()
def _peer(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return network(images.contiguous()).flatten(1)
