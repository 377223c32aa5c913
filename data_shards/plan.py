"""Which samples each rank reads in each batch of an epoch. Pure arithmetic: no files, no torch.

A sample's id is its position in its split, counted over the shards in the order of the index.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import PlanError
from data_shards.index import ShardIndex

WINDOW_SHARDS = 8  # samples are shuffled within windows of so many shards: half a gigabyte of 64 MB shards

Ids: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """One rank's share of one epoch over one split.

    Training (`shuffle`): seed and epoch alone decide the order of the N samples. They are divided into
    T = ceil(N / batch_size) steps, and each step into one batch per rank. The sizes of two steps differ by at most one
    sample, and so do those of the batches of a step. Every sample comes exactly once, every rank has T batches, and
    there is no remainder to drop or pad. The order does not depend on the world size: a run that stops after step k
    resumes at step k with more or fewer ranks, and neither repeats nor skips a sample.

    Evaluation (no `shuffle`): the samples in stored order, divided into one part per rank, then into batches. Ranks may
    have different numbers of batches, or none: no collective operation may run once per batch.

    Attributes:
        batch_size: Global batch size: images of one step over all ranks.
    """

    index: ShardIndex
    split: str
    batch_size: int
    world_size: int = 1
    rank: int = 0
    seed: int = 0
    epoch: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise PlanError(f"rank {self.rank} is outside the world size of {self.world_size}")
        if self.batch_size < 1:
            raise PlanError(f"batch size {self.batch_size} is below 1")
        if not self.samples:
            raise PlanError(f"split {self.split!r} has no samples; the data set has {', '.join(self.index.splits)}")
        smallest = self.samples // self.steps
        if self.shuffle and smallest < self.world_size:
            raise PlanError(
                f"a step of {smallest} of the {self.samples} samples leaves some of {self.world_size} workers without "
                f"an image; use --workers {smallest} or a larger --batch-size"
            )

    @cached_property
    def samples(self) -> int:
        """N, the number of samples of the split."""
        return self.index.samples_in(self.split)

    @property
    def steps(self) -> int:
        """T, the number of steps of a training epoch."""
        return -(-self.samples // self.batch_size)

    @property
    def batches(self) -> int:
        """Number of batches of this rank; in training the same on every rank."""
        if self.shuffle:
            return self.steps
        first, last = _part(self.samples, self.world_size, self.rank)
        return -(-(last - first) // self._rank_batch)

    @property
    def largest_batch(self) -> int:
        """Samples of the largest batch of any rank."""
        if self.shuffle:
            return -(-self.samples // (self.steps * self.world_size))
        return min(self._rank_batch, -(-self.samples // self.world_size))

    def ids(self, batch: int) -> Ids:
        """Return the sample ids of one of this rank's batches, int64 (B,)."""
        if not 0 <= batch < self.batches:
            raise PlanError(f"batch {batch} is outside the {self.batches} batches of the epoch")
        if not self.shuffle:
            first, last = _part(self.samples, self.world_size, self.rank)
            start = first + batch * self._rank_batch
            return np.arange(start, min(start + self._rank_batch, last), dtype=np.int64)
        first, last = _part(self.samples, self.steps, batch)
        low, high = _part(last - first, self.world_size, self.rank)
        return self._order[first + low : first + high]

    def images_in_step(self, batch: int) -> int:
        """Return the images of a training step over all ranks; in evaluation those of this rank's batch."""
        if not self.shuffle:
            return len(self.ids(batch))
        first, last = _part(self.samples, self.steps, batch)
        return last - first

    @property
    def _rank_batch(self) -> int:
        return max(1, self.batch_size // self.world_size)

    @cached_property
    def _order(self) -> Ids:
        """The ids of the split in this epoch's order, int64 (N,): shards shuffled, samples within windows of shards."""
        sizes = np.array([shard.samples for shard in self.index.of_split(self.split)], dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        draw = np.random.default_rng([self.seed, self.epoch])
        shards = draw.permutation(len(sizes))
        windows = [shards[w : w + WINDOW_SHARDS] for w in range(0, len(shards), WINDOW_SHARDS)]
        return np.concatenate(
            [
                draw.permutation(np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in window]))
                for window in windows
            ]
        )


def _part(total: int, parts: int, part: int) -> tuple[int, int]:
    """Return the bounds of one of `parts` consecutive parts of `total` items; their sizes differ by at most one."""
    return total * part // parts, total * (part + 1) // parts
