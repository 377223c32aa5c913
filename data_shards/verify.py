"""Compares a data set with its index: every byte, count, label and image."""

from collections.abc import Callable, Iterator

from data_shards.cache import ShardCache, default_cache
from data_shards.diagnosis import Fault, sample_faults
from data_shards.errors import DamagedShard, RemoteError
from data_shards.files import ShardFiles
from data_shards.index import Shard, ShardIndex, read_index
from data_shards.locations import local_folder
from data_shards.processes import fitting, in_processes
from data_shards.table import byte_fault

IMAGES_PER_PROCESS = 2000  # fewer are checked here before a new process has started

OnProgress = Callable[[int, int], None]


def verify(
    location: str,
    *,
    processes: int | None = None,
    on_progress: OnProgress = lambda *_: None,
    cache: ShardCache | None = None,
) -> tuple[Fault, ...]:
    """Read a data set back and return its faults in the order of its shards, none for a sound one.

    Args:
        location: Folder or URL.
        processes: None takes one per core, or fewer for little work.
        on_progress: Called with the samples done and the samples in all.
        cache: Of remote shards; None takes this user's on this machine.

    Raises:
        BadIndex: There is no readable index to compare with.
    """
    index = read_index(location)
    total, done = sum(shard.samples for shard in index.shards), 0
    found: dict[int, tuple[Fault, ...]] = {}
    on_progress(0, total)
    tasks = [(ShardFiles(location, index, cache or default_cache()), shard) for shard in index.shards]
    processes = processes or fitting(total, per_process=IMAGES_PER_PROCESS)
    for number, faults in in_processes(shard_faults, tasks, processes=processes):
        found[number] = faults
        done += index.shards[number].samples
        on_progress(done, total)
    return (*_unlisted(location, index), *(fault for number in sorted(found) for fault in found[number]))


def shard_faults(files: ShardFiles, shard: Shard) -> tuple[Fault, ...]:
    """Return the faults of one shard."""
    try:
        path = files.path_of(shard)
    except (DamagedShard, RemoteError) as error:
        return (Fault(shard.name, None, str(error)),)
    damage = byte_fault(path, shard)
    of_bytes = (Fault(shard.name, None, damage),) if damage else ()
    return (*of_bytes, *sample_faults(path, shard, first=files.firsts[shard.name], index=files.index))


def _unlisted(location: str, index: ShardIndex) -> Iterator[Fault]:
    folder = local_folder(location)
    listed = {shard.name for shard in index.shards}
    for file in sorted(folder.glob("*.tar")) if folder else ():
        if file.name not in listed:
            yield Fault(file.name, None, f"{file.name} is not in the index; remove it or pack the data set anew")
