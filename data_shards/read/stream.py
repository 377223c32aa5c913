"""Batches of images for training and evaluation, decoded outside the training process. Needs torch."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_shards.errors import PlanError, RemoteError, ShardError
from data_shards.index import Shard, ShardIndex
from data_shards.pixels import Pixels
from data_shards.plan import EpochPlan, Ids
from data_shards.read.loader_processes import LoaderProcesses, share
from data_shards.read.shard_cache import LIMIT, ShardCache, default_cache
from data_shards.read.shard_files import ShardFiles, tables_ahead
from data_shards.samples import Extent, StoredSample, read_square
from data_shards.tar_index import SampleTable

PREFETCH_BATCHES = 4  # per loader worker: enough to hide a slow file
FETCHES = 3  # downloads of one shard if other jobs on this machine evict it from the cache each time

Task: TypeAlias = list[Extent]  # what one batch reads
Fault: TypeAlias = ShardError | OSError  # why there is no batch


@dataclass(frozen=True)
class Batch:
    """Samples of one step on one rank.

    Attributes:
        images: uint8 (B, C, S, S); C is 1 if every image of the data set is gray, else 3.
        labels: int64 (B,), positions in the index's classes; (B, classes) targets in a multi-label data set.
        ids: int64 (B,), the samples' ids in their split.
        groups: Patient or case of each sample, "" if the data set has no groups.
        sources: Names of the files that the samples came from.
        columns: Value of each sample in the kept columns, by their names; a column without a value is left out.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    groups: tuple[str, ...]
    sources: tuple[str, ...]
    columns: tuple[dict[str, str], ...]

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, for asynchronous copies to a GPU. The DataLoader calls this."""
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
    then: Sequence[EpochPlan] = (),
    pin_memory: bool = False,
    prefetch_bytes: int | None = None,
    cache: ShardCache | None = None,
) -> Generator[Batch, None, None]:
    """Yield this rank's batches of an epoch in the plan's order, from `start_batch` on.

    Which samples a batch has depends on the plan alone, not on `loader_workers`. Every shard is compared with the
    index before its first sample is used.

    With `then` the batches of other plans follow. The same loader processes decode them, and begin while the last
    batches of the plan before are in use.

    Args:
        location: Folder or URL of the data set.
        index: Index of the data set.
        plan: The samples of each batch.
        image_size: Side of the square images in pixels.
        loader_workers: Processes that decode; 0 decodes in this process.
        start_batch: The first batch to yield; a run resumed in the middle of an epoch sets it.
        then: Plans of the same data set whose batches follow, all of them.
        pin_memory: Whether to put the batches into page-locked memory.
        prefetch_bytes: Limit of the batches that loader workers have ready in shared memory; None is no limit.
        cache: Cache of remote shards; None uses this user's on this machine.

    Raises:
        DamagedShard: A shard or a sample is not what the index says; the text names shard and key.
        RemoteError: A remote shard cannot be fetched.
        PlanError: `start_batch` is beyond the epoch.
    """
    if not 0 <= start_batch <= plan.batches:
        raise PlanError(f"start batch {start_batch} is outside the {plan.batches} batches of the epoch")
    files = ShardFiles(location, index, cache or default_cache())
    plans = (plan, *then)
    largest = max(each.largest_batch for each in plans)
    loaders = _loaders(loader_workers, prefetch_bytes, index, images=largest, image_size=image_size)
    return _load(files, _tasks_of_plans(files, plans, start_batch), image_size, loaders, pin_memory)


def read_shards(
    location: str,
    shards: Sequence[Shard],
    index: ShardIndex,
    *,
    image_size: int,
    batch_size: int,
    loader_workers: int = 0,
    pin_memory: bool = False,
    prefetch_bytes: int | None = None,
    cache: ShardCache | None = None,
) -> Generator[tuple[Shard, Batch], None, None]:
    """Yield the samples of some shards, of any splits, in stored order; each batch has samples of one shard alone.

    One loader reads them all: its processes start once, and decode the next shard while the last one is used. With a
    small cache of remote shards, this process reads one after another: the processes would hold several.

    Raises:
        DamagedShard: A shard or a sample is not what the index says.
        RemoteError: A remote shard cannot be fetched, or the cache cannot hold the largest one.
    """
    files = ShardFiles(location, index, cache or default_cache())
    if not files.shards_ahead(shards, mixed=False):
        loader_workers = 0
    batches = [(shard, ids) for shard in shards for ids in _stored_order(files.firsts[shard.name], shard, batch_size)]
    largest = min(batch_size, max((shard.samples for shard in shards), default=0))
    loaders = _loaders(loader_workers, prefetch_bytes, index, images=largest, image_size=image_size)
    with closing(_load(files, _tasks_of_shards(files, batches), image_size, loaders, pin_memory)) as loaded:
        for (shard, _), batch in zip(batches, loaded, strict=True):
            yield shard, batch


def _stored_order(first: int, shard: Shard, batch_size: int) -> Iterator[Ids]:
    """Yield the ids of a shard's samples in batches; `first` is that of its first sample."""
    for start in range(0, shard.samples, batch_size):
        yield np.arange(first + start, first + min(start + batch_size, shard.samples), dtype=np.int64)


def read_samples(
    location: str,
    index: ShardIndex,
    split: str,
    ids: Sequence[int],
    *,
    image_size: int,
    cache: ShardCache | None = None,
) -> Iterator[Batch]:
    """Yield the samples of a split with these ids, in this order, each as a batch: so a small cache is enough.

    Other samples of their shards are not read.

    Raises:
        DamagedShard: A shard or a sample is not what the index says.
    """
    files = ShardFiles(location, index, cache or default_cache())
    batches = [np.asarray([sample_id], dtype=np.int64) for sample_id in ids]
    alone = LoaderProcesses(0, PREFETCH_BATCHES)
    return _load(files, _tasks(files, split, batches, mixed=False), image_size, alone, False)


def _tasks_of_plans(files: ShardFiles, plans: Sequence[EpochPlan], start: int) -> Generator[Task, None, None]:
    """Yield what to read for each batch of the plans; of the first plan from batch `start` on."""
    for plan in plans:
        drawn = replace(plan)  # a copy, which keeps the order of its samples only as long as it is used
        yield from _tasks(files, plan.split, [drawn.ids(batch) for batch in range(start, plan.batches)], mixed=True)
        start = 0


def _tasks_of_shards(files: ShardFiles, batches: Sequence[tuple[Shard, Ids]]) -> Generator[Task, None, None]:
    """Yield what to read for each batch of a shard; ids count from the first sample of the shard's own split."""
    for split, of_split in groupby(batches, key=lambda batch: batch[0].split):
        yield from _tasks(files, split, [ids for _, ids in of_split], mixed=False)


def _tasks(files: ShardFiles, split: str, batches: Sequence[Ids], *, mixed: bool) -> Generator[Task, None, None]:
    """Yield what to read for each batch, once the shards it needs are downloaded and checked.

    Raises:
        RemoteError: The cache is too small for the shards that a batch may draw from: a window if they are `mixed`.
    """
    shards = files.index.of_split(split)
    bounds = np.cumsum([shard.samples for shard in shards])
    numbers = [np.searchsorted(bounds, ids, side="right") for ids in batches]
    first_used = dict.fromkeys(chain.from_iterable(of_batch.tolist() for of_batch in numbers))
    places = {number: place for place, number in enumerate(first_used)}
    firsts = [int(bound) - shard.samples for bound, shard in zip(bounds, shards, strict=True)]
    in_order = [shards[number] for number in first_used]
    with tables_ahead(files, in_order, files.shards_ahead(in_order, mixed=mixed)) as table:
        for ids, of_batch in zip(batches, numbers, strict=True):
            yield [
                _extent(shards[number], table(places[number]), sample_id - firsts[number], firsts[number])
                for sample_id, number in zip(ids.tolist(), of_batch.tolist(), strict=True)
            ]


def _extent(shard: Shard, table: SampleTable, place: int, first: int) -> Extent:
    edges = tuple(table.extents[place].tolist())
    return Extent(shard.name, table.path, table.first + place, edges, shift=first - table.first)


class _Decoder(Dataset[Any]):
    """Turns a task into a batch in a loader worker. An error is returned, not raised with a worker's traceback."""

    def __init__(self, files: ShardFiles, image_size: int) -> None:
        self.files, self.image_size = files, image_size

    def __getitem__(self, task: Task | Fault) -> Batch | Fault:
        try:
            return task if isinstance(task, ShardError | OSError) else self._decoded(task)
        except (ShardError, OSError) as error:
            return error

    def _decoded(self, task: Task) -> Batch:
        pixels = np.empty((len(task), _channels(self.files.index), self.image_size, self.image_size), dtype=np.uint8)
        samples = []
        for row, extent in enumerate(task):
            sample, pixels[row] = self._read(extent)
            samples.append(sample)
        images = torch.from_numpy(pixels)
        labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        ids = torch.tensor([extent.sample_id + extent.shift for extent in task], dtype=torch.int64)
        share(images, labels, ids)
        return Batch(
            images=images,
            labels=labels,
            ids=ids,
            groups=tuple(str(sample.info.get("group", "")) for sample in samples),
            sources=tuple(str(sample.info.get("source", "")) for sample in samples),
            columns=tuple(_columns(sample) for sample in samples),
        )

    def _read(self, extent: Extent) -> tuple[StoredSample, Pixels]:
        """Read a sample; a copy that the cache has evicted meanwhile is downloaded again."""
        index = self.files.index
        for _ in range(FETCHES):
            try:
                return read_square(extent, index=index, size=self.image_size)
            except FileNotFoundError:
                self.files.fetch_again(extent.shard)
        raise RemoteError(f"{extent.where} was evicted from the cache {FETCHES} times; raise {LIMIT}")


def _columns(sample: StoredSample) -> dict[str, str]:
    found = sample.info.get("columns")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


class _TaskSampler:
    """Gives the tasks to the DataLoader one by one, as loader workers become free.

    An error is passed on like a task. Raised here, it would overtake the batches in progress, and break a DataLoader
    that is starting.
    """

    def __init__(self, tasks: Generator[Task, None, None]) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[Task | Fault]:
        try:
            yield from self.tasks
        except (ShardError, OSError) as error:
            yield error


def _channels(index: ShardIndex) -> int:
    """Return the color channels of the images of a batch."""
    return 1 if index.color == "L" else 3


def _loaders(
    loader_workers: int, prefetch_bytes: int | None, index: ShardIndex, *, images: int, image_size: int
) -> LoaderProcesses:
    """Return the loader processes whose batches, of at most so many images, fit into shared memory."""
    batch_bytes = images * _channels(index) * image_size**2
    return LoaderProcesses(loader_workers, PREFETCH_BATCHES).within(prefetch_bytes, batch_bytes=batch_bytes)


def _load(
    files: ShardFiles,
    tasks: Generator[Task, None, None],
    image_size: int,
    loaders: LoaderProcesses,
    pin_memory: bool,
) -> Generator[Batch, None, None]:
    loader: DataLoader[Any] = DataLoader(
        _Decoder(files, image_size),
        batch_size=None,
        sampler=_TaskSampler(tasks),
        num_workers=loaders.count,
        prefetch_factor=loaders.prefetch_factor,
        pin_memory=pin_memory,
    )
    try:
        for batch in loader:
            if isinstance(batch, ShardError | OSError):
                raise batch
            yield batch
    finally:
        # Not left to the garbage collector: this ends threads, and a thread that starts may run the collector while it
        # holds the lock that a thread needs to end.
        tasks.close()
