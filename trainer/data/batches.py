"""Loaders of a rank's batches: features from memory, or images from shards. Also seeds the random numbers of a step."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from data_shards.index import ShardIndex
from data_shards.plan import EpochPlan
from data_shards.read.stream import Batch, open_batches
from trainer.data.feature_extraction import FeatureExtractor
from trainer.data.split_features import FeatureRows


@dataclass(frozen=True)
class DeviceBatch:
    """One batch of one rank.

    Attributes:
        inputs: What the module takes, `(B, ...)` on the device.
        labels: `(B,) int64` on the device.
        ids: `(B,) int64`, the samples' numbers in their split.
        images: Global batch size: images in this step over all ranks.
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    images: int


class BatchLoader(Protocol):
    """Loads the batches of one epoch in the order of the plan."""

    def __call__(self, plan: EpochPlan, start: int = 0) -> Iterator[DeviceBatch]:
        """Yield this rank's batches from number `start` on."""


@dataclass(frozen=True)
class FeatureLoader:
    """Loads batches of features; a sample's id is its row.

    Attributes:
        values: Features by split, `(N, 1280) float32`: on the device, or read from their files.
        labels: Labels by split, `(N,) int64`, where the features are.
        device: The device of the batches.
        on_batch: Called before each batch.
    """

    values: Mapping[str, FeatureRows]
    labels: Mapping[str, Tensor]
    device: torch.device
    on_batch: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, extractor: FeatureExtractor, splits: Iterable[str], device: torch.device) -> "FeatureLoader":
        """Return a loader for many epochs: a GPU with the memory holds all; call `extract` for each split first."""
        features = {split: extractor.features_of(split) for split in splits}
        values = {split: found.values.to(device) for split, found in features.items()}
        labels = {split: found.labels.to(values[split].device) for split, found in features.items()}
        return cls(values=values, labels=labels, device=device, on_batch=extractor.mark_if_due)

    @classmethod
    def once(cls, extractor: FeatureExtractor, split: str, device: torch.device) -> "FeatureLoader":
        """Return a loader for one epoch: each rank reads its own rows alone; call `extract` first."""
        features = extractor.features_of(split)
        return cls(values={split: features.values}, labels={split: features.labels}, device=device)

    def __call__(self, plan: EpochPlan, start: int = 0) -> Iterator[DeviceBatch]:
        """Yield rows of the split."""
        values, labels = self.values[plan.split], self.labels[plan.split]
        for batch in range(start, plan.batches):
            self.on_batch()
            ids = torch.from_numpy(plan.ids(batch))
            rows = ids.to(values.device, non_blocking=True)
            inputs, targets = values[rows].to(self.device), labels[rows].to(self.device)
            yield DeviceBatch(inputs, targets, ids, plan.images_in_step(batch))


@dataclass(eq=False)
class ImageLoader:
    """Loads batches of images from shards.

    Its processes stay for the plans that follow, and decode the first batches of the next plan before it is asked for.

    Attributes:
        prefetch_bytes: Limit of the batches in shared memory; None is no limit.
        prepare: Turns `(B, C, S, S) uint8` on the device into the module's input; its second argument says whether to
            augment.
        following: Returns the plans that will be loaded after a plan, in this order. Where others are, processes start
            anew.
    """

    location: str
    index: ShardIndex
    image_size: int
    loader_workers: int
    prefetch_bytes: int | None
    device: torch.device
    prepare: Callable[[Tensor, bool], Tensor]
    following: Callable[[EpochPlan], Sequence[EpochPlan]] = lambda _: ()
    _expected: deque[EpochPlan] = field(default_factory=deque)  # that the processes load
    _batches: Generator[Batch, None, None] | None = None  # of these plans

    def __call__(self, plan: EpochPlan, start: int = 0) -> Iterator[DeviceBatch]:
        """Yield prepared images; only a shuffled plan, which means training, augments them."""
        batches, left = self._batches_of(plan, start), plan.batches - start
        try:
            for number in range(start, plan.batches):
                batch, left = next(batches), left - 1
                yield self._on_device(batch, plan, number)
        finally:
            if self._batches is batches and (left or not self._expected):
                self.close()

    def close(self) -> None:
        """End the processes."""
        batches, self._batches = self._batches, None
        self._expected.clear()
        if batches is not None:
            batches.close()

    def _batches_of(self, plan: EpochPlan, start: int) -> Generator[Batch, None, None]:
        """Return the batches of a plan, of the open ones if they come next, and of plans that follow."""
        if self._batches is None or start or not self._expected or self._expected[0] != plan:
            self.close()
            then = self.following(plan)
            self._batches = open_batches(
                self.location,
                self.index,
                plan,
                image_size=self.image_size,
                loader_workers=self.loader_workers,
                prefetch_bytes=self.prefetch_bytes,
                start_batch=start,
                then=then,
                pin_memory=self.device.type == "cuda",
            )
            self._expected.extend((plan, *then))
        self._expected.popleft()
        return self._batches

    def _on_device(self, batch: Batch, plan: EpochPlan, number: int) -> DeviceBatch:
        images = batch.images.to(self.device, non_blocking=True)
        if plan.shuffle:
            step = plan.epoch * plan.batches + number
            seed_draws(step_seed(plan.seed, step, plan.rank, augments=True), self.device)
        inputs = self.prepare(images, plan.shuffle)
        labels = batch.labels.to(self.device, non_blocking=True)
        return DeviceBatch(inputs, labels, batch.ids, plan.images_in_step(number))


def step_seed(seed: int, step: int, rank: int, *, augments: bool = False) -> int:
    """Return the random seed of a rank in a step, so that a checkpoint needs no state of a random number generator.

    The factors are large primes, so that neighbouring steps, ranks and seeds do not collide.
    """
    return (seed * 1_000_003 + step * 7_919 + (2 * rank + augments) * 104_729) % 2**63


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed the random number generators of the CPU and of `device`.

    `torch.manual_seed` seeds them alike, but also every other kind of device, and formats a stack trace for each that
    is absent: a tenth of the step of a small head.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
