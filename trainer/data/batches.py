"""Where the loop's batches come from: stored features, or images through the device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from data_shards.index import ShardIndex
from data_shards.plan import EpochPlan
from data_shards.read.stream import open_batches


@dataclass(frozen=True)
class DeviceBatch:
    """One batch of one rank.

    Attributes:
        inputs: What the module takes, `(B, ...)` on the device.
        labels: `(B,) int64` on the device.
        ids: `(B,) int64`, the samples' numbers in their split.
        images: In the step over all ranks together.
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    images: int


class BatchLoader(Protocol):
    """Batches of one epoch in the order of the plan, from batch `start` on."""

    def __call__(self, plan: EpochPlan, start: int = 0) -> Iterator[DeviceBatch]:
        """Yield this rank's batches."""


@dataclass(frozen=True)
class FeatureLoader:
    """Features of whole splits in memory; a sample's id is its row."""

    values: dict[str, Tensor]  # split: (N, 1280) float32 on the device
    labels: dict[str, Tensor]  # split: (N,) int64 on the device

    def __call__(self, plan: EpochPlan, start: int = 0) -> Iterator[DeviceBatch]:
        """Yield rows of the split."""
        values, labels = self.values[plan.split], self.labels[plan.split]
        for batch in range(start, plan.batches):
            ids = torch.from_numpy(plan.ids(batch))
            rows = ids.to(values.device)
            yield DeviceBatch(values[rows], labels[rows], ids, plan.images_in_step(batch))


@dataclass(frozen=True)
class ImageLoader:
    """Images read from shards; `prepare` turns bytes into what the module takes, `augment` says if it may vary them."""

    location: str
    index: ShardIndex
    image_size: int
    loader_workers: int
    device: torch.device
    prepare: Callable[[Tensor, bool], Tensor]

    def __call__(self, plan: EpochPlan, start: int = 0) -> Iterator[DeviceBatch]:
        """Yield prepared images; only a shuffled plan, which is training, may vary them."""
        opened = open_batches(
            self.location,
            self.index,
            plan,
            image_size=self.image_size,
            loader_workers=self.loader_workers,
            start_batch=start,
        )
        for number, batch in enumerate(opened, start):
            images = batch.images.to(self.device, non_blocking=True)
            if plan.shuffle:
                step = plan.epoch * plan.batches + number
                seed_draws(step_seed(plan.seed, step, plan.rank, augments=True), self.device)
            inputs = self.prepare(images, plan.shuffle)
            labels = batch.labels.to(self.device, non_blocking=True)
            yield DeviceBatch(inputs, labels, batch.ids, plan.images_in_step(number))


def step_seed(seed: int, step: int, rank: int, *, augments: bool = False) -> int:
    """Return the seed of a rank's draws in a step; to resume, the position is then all there is to know.

    The factors are large primes, so that neighbours do not collide.
    """
    return (seed * 1_000_003 + step * 7_919 + (2 * rank + augments) * 104_729) % 2**63


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what is drawn on the CPU and on `device` from here on.

    `torch.manual_seed` draws the same, but prepares every other kind of device as well, with a formatted stack for each
    that is not there: a tenth of a small head's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
