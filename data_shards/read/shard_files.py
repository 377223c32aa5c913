"""The shards of one data set, brought to this machine, checked once and ready to read by offset."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.errors import DamagedShard, RemoteError
from data_shards.index import Shard, ShardIndex
from data_shards.locations import local_folder, shard_path
from data_shards.plan import WINDOW_SHARDS
from data_shards.read.sample_check import find_sample_faults
from data_shards.read.shard_cache import LIMIT, ShardCache, default_cache
from data_shards.tar_index import SampleTable, find_byte_fault, read_table

TRIES = 3  # to read a copy before the cache removes it
FETCHERS = 4  # shards downloaded and checked at a time, ahead of the reader

# What this process has checked: a file of this path, size, time and sha256 needs no second look.
_CHECKED: dict[tuple[Path, int, int, str, int], SampleTable] = {}


@dataclass(frozen=True)
class ShardFiles:
    """Where the shards of a data set lie on this machine.

    Attributes:
        cache: Keeps copies of remote shards; a local data set needs none.
        firsts: The number of each shard's first sample in its split, by the shard's name.
    """

    location: str
    index: ShardIndex
    cache: ShardCache = field(default_factory=default_cache)
    firsts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "firsts", dict(_first_ids(self.index)))

    @property
    def is_local(self) -> bool:
        """Whether the data set lies in a folder of this machine or one it has mounted."""
        return local_folder(self.location) is not None

    def path_of(self, shard: Shard) -> Path:
        """Return the path of a shard on this machine, after fetching it from a remote data set.

        Raises:
            DamagedShard: It is missing.
            RemoteError: It cannot be fetched.
        """
        if self.is_local:
            return shard_path(self.location, shard.name)
        return self.cache.path_of(self.location, shard)

    def table_of(self, shard: Shard) -> SampleTable:
        """Return where the samples of a shard stand; its bytes are compared with the index the first time.

        Raises:
            DamagedShard: The shard is missing, or is not what the index says; the text names the damaged sample.
            RemoteError: It cannot be fetched.
        """
        for _ in range(TRIES):
            path = self.path_of(shard)
            try:
                return self._table(path, shard)
            except (FileNotFoundError, DamagedShard):
                if self.is_local or path.exists():
                    raise  # else the cache has removed it meanwhile, to make room for others
        raise RemoteError(f"copies of {shard.name} go before they are read; raise {LIMIT}")

    def fetch_again(self, name: str) -> None:
        """Bring back a copy, by its shard's name, that the cache has removed since its path was given.

        Raises:
            DamagedShard: The shard of a local data set is gone.
            RemoteError: It cannot be fetched.
        """
        self.path_of(next(shard for shard in self.index.shards if shard.name == name))

    def shards_ahead(self, shards: Sequence[Shard]) -> int:
        """Return how many shards to prepare beyond the one in use: a window where the cache holds two of them.

        Raises:
            RemoteError: The cache cannot hold the shards that one batch may draw from.
        """
        if self.is_local:
            return WINDOW_SHARDS
        window = sum(sorted((shard.bytes for shard in shards), reverse=True)[:WINDOW_SHARDS])
        if window > self.cache.limit_bytes:
            raise RemoteError(
                f"the cache's limit of {self.cache.limit_bytes} bytes is below the {window} of {WINDOW_SHARDS} shards "
                f"that are mixed at a time; raise {LIMIT} or pack smaller shards"
            )
        return WINDOW_SHARDS if 2 * window <= self.cache.limit_bytes else 0

    def _table(self, path: Path, shard: Shard) -> SampleTable:
        first, facts = self.firsts[shard.name], path.stat()
        known = (path, facts.st_size, facts.st_mtime_ns, shard.sha256, first)
        if known not in _CHECKED:
            path = self._checked(path, shard)
            _CHECKED[known] = read_table(path, shard, first=first)
        return _CHECKED[known]

    def _checked(self, path: Path, shard: Shard) -> Path:
        fault = find_byte_fault(path, shard)
        if fault is None:
            return path
        if not self.is_local:  # the copy rotted; what is fetched now is compared as it comes
            self.cache.drop(shard)
            return self.cache.path_of(self.location, shard)
        found = next(find_sample_faults(path, shard, first=self.firsts[shard.name], index=self.index), None)
        place = found.text if found else "the change is between its samples"
        raise DamagedShard(f"{fault} ({place}); copy it again or pack the data set anew")


@contextmanager
def tables_ahead(files: ShardFiles, shards: Sequence[Shard]) -> Iterator[Callable[[int], SampleTable]]:
    """Prepare shards in the background in the order in which they will be asked for.

    The function given gives the table of a shard by its place in `shards`, and has some of those behind it prepared
    meanwhile.

    Raises:
        RemoteError: The cache is too small for them.
    """
    ahead = files.shards_ahead(shards)
    started: list[Future[SampleTable]] = []
    with ThreadPoolExecutor(FETCHERS, thread_name_prefix="shards") as pool:

        def table(place: int) -> SampleTable:
            for shard in shards[len(started) : place + 1 + ahead]:
                started.append(pool.submit(files.table_of, shard))
            return started[place].result()

        try:
            yield table
        finally:
            for future in started:
                future.cancel()


def _first_ids(index: ShardIndex) -> Iterator[tuple[str, int]]:
    for split in index.splits:
        first = 0
        for shard in index.of_split(split):
            yield shard.name, first
            first += shard.samples
