"""The shards of one data set on this machine: downloaded, checked once, and read by offset."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.errors import DamagedShard, RemoteError, UnreadableShard, verify_hint
from data_shards.index import Shard, ShardIndex
from data_shards.locations import local_folder, shard_path
from data_shards.plan import WINDOW_SHARDS
from data_shards.read.sample_check import find_sample_faults
from data_shards.read.shard_cache import LIMIT, ShardCache, default_cache
from data_shards.tar_index import SampleTable, find_byte_fault, read_byte_fault, read_table

TRIES = 3  # to read a copy before the cache evicts it
FETCHERS = 4  # shards downloaded and checked at a time, ahead of the reader

# Tables of the shards that this process has checked, by path, size, modification time, sha256 and first id.
_CHECKED: dict[tuple[Path, int, int, str, int], SampleTable] = {}


@dataclass(frozen=True)
class ShardFiles:
    """The shards of a data set as files of this machine.

    Attributes:
        cache: Holds copies of remote shards; a local data set does not use it.
        firsts: Id of the first sample of each shard, by the shard's name.
    """

    location: str
    index: ShardIndex
    cache: ShardCache = field(default_factory=default_cache)
    firsts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "firsts", self.index.first_ids)

    @property
    def is_local(self) -> bool:
        """Whether the data set is in a local or mounted folder."""
        return local_folder(self.location) is not None

    def path_of(self, shard: Shard) -> Path:
        """Return the path of a shard on this machine; a remote one is downloaded first.

        Raises:
            DamagedShard: It is missing.
            RemoteError: It cannot be downloaded.
        """
        if self.is_local:
            return shard_path(self.location, shard.name)
        return self.cache.path_of(self.location, shard)

    def table_of(self, shard: Shard) -> SampleTable:
        """Return the byte offsets of a shard's samples. Its sha256 is compared with the index the first time.

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
                    raise  # else the cache has evicted it meanwhile
        raise RemoteError(f"copies of {shard.name} are evicted before they are read; raise {LIMIT}")

    def fetch_again(self, name: str) -> None:
        """Download a shard again, by its name, after the cache has evicted its copy.

        Raises:
            DamagedShard: The shard of a local data set is gone.
            RemoteError: It cannot be fetched.
        """
        self.path_of(next(shard for shard in self.index.shards if shard.name == name))

    def shards_ahead(self, shards: Sequence[Shard], *, mixed: bool) -> int:
        """Return how many shards to prepare ahead: a window of them if the cache has room for two windows, else none.

        Args:
            shards: In the order in which they are read.
            mixed: Whether one batch may draw from a window of shards, or from a single one.

        Raises:
            RemoteError: The cache cannot hold the shards that one batch may draw from.
        """
        if self.is_local:
            return WINDOW_SHARDS
        sizes = sorted((shard.bytes for shard in shards), reverse=True)
        window, limit = sum(sizes[:WINDOW_SHARDS]), self.cache.limit_bytes
        needed = window if mixed else max(sizes, default=0)
        if needed > limit:
            what = f"{WINDOW_SHARDS} shards that are mixed at a time" if mixed else "the largest shard"
            raise RemoteError(
                f"the cache's limit of {limit} bytes is below the {needed} of {what}; raise {LIMIT} or pack smaller "
                "shards"
            )
        return WINDOW_SHARDS if 2 * window <= limit else 0

    def _table(self, path: Path, shard: Shard) -> SampleTable:
        first, facts = self.firsts[shard.name], path.stat()
        known = (path, facts.st_size, facts.st_mtime_ns, shard.sha256, first)
        if known not in _CHECKED:
            path = self._checked(path, shard)
            _CHECKED[known] = read_table(path, shard, first=first)
        return _CHECKED[known]

    def _checked(self, path: Path, shard: Shard) -> Path:
        if not self.is_local:
            if find_byte_fault(path, shard) is None:
                return path
            self.cache.drop(shard)  # the copy is damaged; the cache checks the next download
            return self.cache.path_of(self.location, shard)
        try:
            fault = read_byte_fault(path, shard)
        except OSError as error:
            raise UnreadableShard.by(error, shard.name) from error
        if fault is None:
            return path
        found = next(find_sample_faults(path, shard, first=self.firsts[shard.name], index=self.index), None)
        place = found.text.partition("; ")[0] if found else "the change is between its samples"
        raise DamagedShard(
            f"{fault} ({place}); copy it again or pack the data set again ({verify_hint(self.location)})"
        )


@contextmanager
def tables_ahead(files: ShardFiles, shards: Sequence[Shard], ahead: int) -> Iterator[Callable[[int], SampleTable]]:
    """Prepare shards in background threads in the order in which they are needed.

    The function that is given returns the table of a shard by its position in `shards`, and starts to prepare `ahead`
    shards after it.
    """
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
