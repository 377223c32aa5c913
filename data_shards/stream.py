"""Batches of images for training and evaluation, decoded outside the training process. Needs torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_shards.errors import PlanError, ShardError
from data_shards.files import ShardFiles
from data_shards.index import Shard, ShardIndex
from data_shards.plan import WINDOW_SHARDS, EpochPlan, Ids
from data_shards.reading import Extent, squares
from data_shards.table import SampleTable, key_of

PREFETCH_BATCHES = 4  # per loader worker: enough to ride over a slow file, small enough for /dev/shm


@dataclass(frozen=True)
class Batch:
    """Samples of one step on one rank.

    Attributes:
        images: uint8 (B, C, S, S); C is 1 where every image of the data set is gray, else 3.
        labels: int64 (B,), positions in the index's classes.
        ids: int64 (B,), the samples' numbers in their split.
        keys: Names of the samples in their shards.
        groups: Patient or case of each sample, "" where the data set has none.
        sources: Names of the files that the samples came from.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    sources: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, from which copies to a GPU need not wait; the DataLoader calls it."""
        return replace(
            self, images=self.images.pin_memory(), labels=self.labels.pin_memory(), ids=self.ids.pin_memory()
        )


def open_batches(
    location: str,
    index: ShardIndex,
    plan: EpochPlan,
    *,
    image_size: int,
    loader_workers: int = 0,
    start_batch: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield this rank's batches of an epoch in the plan's order, from `start_batch` on.

    Which samples a batch has depends on the plan alone, not on `loader_workers`. Every shard is compared with the
    index before its first sample is used.

    Raises:
        DamagedShard: A shard or a sample is not what the index says; the text names shard and key.
        PlanError: `start_batch` is beyond the epoch.
    """
    if not 0 <= start_batch <= plan.batches:
        raise PlanError(f"start batch {start_batch} is outside the {plan.batches} batches of the epoch")
    files = ShardFiles(location, index)
    ids = (plan.ids(batch) for batch in range(start_batch, plan.batches))
    tasks = _tasks(files, plan.split, ids)
    return _load(tasks, index, image_size, loader_workers, pin_memory)


def read_shard(
    location: str,
    shard: Shard,
    index: ShardIndex,
    *,
    image_size: int,
    batch_size: int,
    loader_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the samples of one shard in stored order.

    Raises:
        DamagedShard: The shard or a sample is not what the index says.
    """
    files = ShardFiles(location, index)
    first = files.firsts[shard.name]
    ids = np.arange(first, first + shard.samples, dtype=np.int64)
    batches = (ids[start : start + batch_size] for start in range(0, len(ids), batch_size))
    return _load(_tasks(files, shard.split, batches), index, image_size, loader_workers, pin_memory)


def _tasks(files: ShardFiles, split: str, batches: Iterable[Ids]) -> Iterator[list[Extent]]:
    """Yield what to read for each batch, as soon as the shards it needs are here and checked."""
    shards = files.index.of_split(split)
    bounds = np.cumsum([shard.samples for shard in shards])
    tables: dict[int, SampleTable] = {}
    for ids in batches:
        numbers = np.searchsorted(bounds, ids, side="right")
        missing = [number for number in dict.fromkeys(numbers.tolist()) if number not in tables]
        found = files.tables_ahead([shards[number] for number in missing], WINDOW_SHARDS)
        tables.update(zip(missing, found, strict=True))
        yield [_extent(tables[number], i) for number, i in zip(numbers.tolist(), ids.tolist(), strict=True)]


def _extent(table: SampleTable, sample_id: int) -> Extent:
    return Extent(table.path, sample_id, tuple(table.extents[sample_id - table.first].tolist()))


class _Decoder(Dataset[Any]):
    """Turns a task into a batch, in a loader worker. An error is handed back whole, not as a worker's traceback."""

    def __init__(self, index: ShardIndex, image_size: int) -> None:
        self.classes, self.color, self.image_size = len(index.classes), index.color, image_size

    def __getitem__(self, task: list[Extent]) -> Batch | ShardError:
        try:
            return self._decode(task)
        except ShardError as error:
            return error

    def _decode(self, task: list[Extent]) -> Batch:
        pixels, samples = squares(task, classes=self.classes, size=self.image_size, color=self.color)
        return Batch(
            images=torch.from_numpy(pixels),
            labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            ids=torch.tensor([extent.sample_id for extent in task], dtype=torch.int64),
            keys=tuple(key_of(extent.sample_id) for extent in task),
            groups=tuple(str(sample.info.get("group", "")) for sample in samples),
            sources=tuple(str(sample.info.get("source", "")) for sample in samples),
        )


class _TaskSampler:
    """Hands the tasks to the DataLoader one by one, as the loader workers become free."""

    def __init__(self, tasks: Iterator[Sequence[Extent]]) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[Sequence[Extent]]:
        return self.tasks


def _load(
    tasks: Iterator[list[Extent]], index: ShardIndex, image_size: int, loader_workers: int, pin_memory: bool
) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        _Decoder(index, image_size),
        batch_size=None,
        sampler=_TaskSampler(tasks),
        num_workers=loader_workers,
        prefetch_factor=PREFETCH_BATCHES if loader_workers else None,
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, ShardError):
            raise batch
        yield batch
