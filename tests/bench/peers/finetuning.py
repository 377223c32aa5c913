"""A fine-tuning step with unmodified efficientnet_pytorch: eager float32, its own memory-efficient swish, AdamW."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.bench.peers.training import backbone


def stepper(weights: Path, head: nn.Module, *, lr: float, backbone_lr: float) -> Callable[[Tensor, Tensor], float]:
    """Return a function that takes one step on `(B, 3, 224, 224)` images and labels, and returns its loss."""
    network = nn.Sequential(backbone(weights).requires_grad_(True), nn.Flatten(), head).train()
    rates = [{"params": head.parameters()}, {"params": network[0].parameters(), "lr": backbone_lr}]
    optimizer = torch.optim.AdamW(rates, lr=lr, weight_decay=0.0)

    def step(images: Tensor, labels: Tensor) -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step
