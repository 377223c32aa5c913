"""Compares a data set with its index: every byte, count, label and image."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data_shards.errors import DamagedShard, RemoteError, UnreadableShard
from data_shards.index import INDEX_NAME, Shard, ShardIndex, read_index
from data_shards.locations import local_folder
from data_shards.process_pool import map_in_processes, process_count
from data_shards.read.sample_check import Fault, find_sample_faults
from data_shards.read.shard_cache import ShardCache, default_cache
from data_shards.read.shard_files import ShardFiles
from data_shards.tar_index import read_byte_fault

IMAGES_PER_PROCESS = 2000  # fewer are checked in this process sooner than a new one starts
SHARDS_PER_TASK = 8

OnProgress = Callable[[int, int], None]


def verify(
    location: str,
    *,
    processes: int | None = None,
    on_progress: OnProgress = lambda *_: None,
    cache: ShardCache | None = None,
) -> tuple[Fault, ...]:
    """Read every byte of a data set and return its faults in the order of its shards.

    Args:
        location: Folder or URL.
        processes: Number of processes; None starts one per core, or fewer for little work.
        on_progress: Called with the samples done and the samples in all.
        cache: Cache of remote shards; None downloads all of them, as a cached copy says nothing about the server.

    Raises:
        BadIndex: The index cannot be read.
    """
    index = read_index(location)
    total, done = sum(shard.samples for shard in index.shards), 0
    found: dict[int, tuple[Fault, ...]] = {}
    on_progress(0, total)
    processes = processes or process_count(total, per_process=IMAGES_PER_PROCESS)
    with tempfile.TemporaryDirectory() as folder:
        cache = cache or replace(default_cache(), folder=Path(folder))
        tasks = [(location, cache, numbers) for numbers in _batches(len(index.shards), processes)]
        for batch, faults in map_in_processes(check_shards, tasks, processes=processes):
            found[batch] = faults
            done += sum(index.shards[number].samples for number in tasks[batch][2])
            on_progress(done, total)
    return (
        *_history_faults(index),
        *_unlisted(location, index),
        *(fault for batch in sorted(found) for fault in found[batch]),
    )


def _batches(shards: int, processes: int) -> list[range]:
    """Return the numbers of the shards of each task: few, so that progress is shown often."""
    size = min(SHARDS_PER_TASK, -(-shards // processes))
    return [range(start, min(start + size, shards)) for start in range(0, shards, size)]


def check_shards(location: str, cache: ShardCache, numbers: Sequence[int]) -> tuple[Fault, ...]:
    """Return the faults of the shards with these numbers in the index."""
    index = read_index(location)
    files = ShardFiles(location, index, cache)
    return tuple(fault for number in numbers for fault in find_shard_faults(files, index.shards[number]))


def find_shard_faults(files: ShardFiles, shard: Shard) -> tuple[Fault, ...]:
    """Return the faults of one shard."""
    try:
        path = files.path_of(shard)
    except (DamagedShard, RemoteError) as error:
        return (Fault(shard.name, None, str(error)),)
    of_samples = tuple(find_sample_faults(path, shard, first=files.firsts[shard.name], index=files.index))
    try:
        damage = read_byte_fault(path, shard)
    except OSError as error:  # the samples that cannot be read, or the whole shard, are named already
        return of_samples or (Fault(shard.name, None, str(UnreadableShard.by(error, shard.name))),)
    return (Fault(shard.name, None, damage), *of_samples) if damage else of_samples


def _history_faults(index: ShardIndex) -> Iterator[Fault]:
    for number, addition in enumerate(index.history):
        if not index.before(number).is_intact():
            text = f"{INDEX_NAME}: the history from {addition.time} does not agree with its digest; copy it again"
            yield Fault(INDEX_NAME, None, text)


def _unlisted(location: str, index: ShardIndex) -> Iterator[Fault]:
    folder = local_folder(location)
    listed = {shard.name for shard in index.shards}
    for file in sorted(folder.glob("*.tar")) if folder else ():
        if file.name not in listed:
            yield Fault(file.name, None, f"{file.name} is not in the index; remove it or pack the data set again")
