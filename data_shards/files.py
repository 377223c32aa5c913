"""The shards of one data set, brought to this machine, checked once and ready to read by offset."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.diagnosis import sample_faults
from data_shards.errors import DamagedShard
from data_shards.index import Shard, ShardIndex
from data_shards.locations import local_folder, shard_path
from data_shards.table import SampleTable, byte_fault, read_table

FETCHERS = 4  # shards checked or downloaded at a time, ahead of the reader

# What this process has checked: a file of this path, size, time and sha256 needs no second look.
_CHECKED: dict[tuple[Path, int, int, str, int], SampleTable] = {}


@dataclass(frozen=True)
class ShardFiles:
    """Where the shards of a data set lie on this machine."""

    location: str
    index: ShardIndex
    firsts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "firsts", dict(_first_ids(self.index)))

    def path_of(self, shard: Shard) -> Path:
        """Return the path of a shard on this machine.

        Raises:
            DamagedShard: It is missing.
        """
        return shard_path(self.location, shard.name)

    def table_of(self, shard: Shard) -> SampleTable:
        """Return where the samples of a shard stand; its bytes are compared with the index the first time.

        Raises:
            DamagedShard: The shard is missing, or is not what the index says.
        """
        path = self.path_of(shard)
        facts = path.stat()
        known = (path, facts.st_size, facts.st_mtime_ns, shard.sha256, self.firsts[shard.name])
        if known not in _CHECKED:
            self._check(path, shard)
            _CHECKED[known] = read_table(path, shard, first=self.firsts[shard.name])
        return _CHECKED[known]

    def _check(self, path: Path, shard: Shard) -> None:
        fault = byte_fault(path, shard)
        if fault is None:
            return
        found = next(sample_faults(path, shard, first=self.firsts[shard.name], index=self.index), None)
        place = found.text if found else "the change is between its samples"
        raise DamagedShard(f"{fault} ({place}); copy it again or pack the data set anew")

    def tables_ahead(self, shards: Iterable[Shard], ahead: int) -> Iterator[SampleTable]:
        """Yield the tables of the shards in their order, up to `ahead` of them being prepared in the background."""
        with ThreadPoolExecutor(FETCHERS) as pool:
            waiting: list[Future[SampleTable]] = []
            try:
                for shard in shards:
                    waiting.append(pool.submit(self.table_of, shard))
                    if len(waiting) > ahead:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def is_local(self) -> bool:
        """Whether the data set lies in a folder of this machine or one it has mounted."""
        return local_folder(self.location) is not None


def _first_ids(index: ShardIndex) -> Iterator[tuple[str, int]]:
    for split in index.splits:
        first = 0
        for shard in index.of_split(split):
            yield shard.name, first
            first += shard.samples
