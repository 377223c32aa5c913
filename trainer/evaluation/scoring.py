"""Every sample of a split through a model, over all ranks, and the figures of it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_shards.index import ShardIndex
from data_shards.plan import EpochPlan
from trainer.data.batches import Source
from trainer.distributed.process_group import Ranks

BATCH = 256  # rows at once on each rank


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a model says of each sample of a split, in the order of sample ids.

    Attributes:
        logits: `(N, classes) float64`.
        labels: `(N,) int64`.
        groups: Patient or case of each sample, "" where unknown; empty where nobody asked.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    groups: tuple[str, ...] = ()

    def probabilities(self) -> NDArray[np.float64]:
        """Return the softmax of the logits, `(N, classes) float64`."""
        powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def scored(
    module: nn.Module,
    source: Source,
    index: ShardIndex,
    split: str,
    ranks: Ranks,
    *,
    autocast: bool = False,
    at_once: int = BATCH,
) -> Scored:
    """Return every sample's logits, on every rank; every rank must call it.

    Each rank takes its part of the split; the parts meet once at the end, so ranks may have different numbers of
    batches, or none. `at_once` are the rows of a batch on each rank.
    """
    plan = EpochPlan(
        index=index,
        split=split,
        batch_size=at_once * ranks.world_size,
        world_size=ranks.world_size,
        rank=ranks.rank,
        shuffle=False,
    )
    rows = ranks.gathered(_rows(module, source, plan, ranks, autocast=autocast))
    rows = rows[rows[:, 0].argsort()]
    return Scored(logits=rows[:, 2:].numpy(), labels=rows[:, 1].long().numpy())


@torch.no_grad()
def _rows(module: nn.Module, source: Source, plan: EpochPlan, ranks: Ranks, *, autocast: bool) -> Tensor:
    """Return id, label and logits of this rank's samples, `(n, 2 + classes) float64`."""
    module.eval()
    rows = [torch.empty(0, 2 + len(plan.index.classes), dtype=torch.float64, device=ranks.device)]
    for step in source(plan):
        with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=autocast):
            logits = module(step.inputs)  # (B, classes)
        labels = step.labels.double().unsqueeze(1)
        rows.append(torch.cat([step.ids.to(labels).unsqueeze(1), labels, logits.double()], dim=1))
    return torch.cat(rows)
