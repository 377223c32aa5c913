"""The states of all runs: a `state.json` is read again only if the file has changed.

The folders are the truth: each look lists them, and compares time, size and inode of each `state.json` that it passes
over with those of the file that was read, which takes microseconds where reading and checking a file takes a tenth of a
millisecond. So a run that is changed, retried, damaged or deleted, on whatever machine, is shown as it is. After many
reads, `save` writes what is known to a file of this machine, for the next process.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TypeAlias

from cluster.mounts import mount_of
from cluster.run_paths import RunPaths
from jobs.runs import index_file
from jobs.runs import state as run_state
from jobs.runs.index_file import IndexRow
from jobs.runs.run_filter import EVERY_RUN, Filter
from jobs.runs.state import RunState

READ_WITHOUT_FILE = 100  # newest runs; reading them takes less time than reading the file of the index
READS_BEFORE_SAVE = 500  # a storage with fewer runs needs no file
LONG_READ = 2000  # a fraction of a second
SAVE_SHARE = 50  # a file of N runs is written again after N/50 reads: they take about as long as writing it
# A file that was changed so short a time before it was read can change once more within the same tick of its clock. On
# a network file system that clock is the server's, which may differ from ours.
SETTLED_SECONDS, SETTLED_SECONDS_ELSEWHERE = 3.0, 3600.0

Stat: TypeAlias = Callable[[str], os.stat_result]


class RunIndex:
    """The states of the runs of a storage. Several threads and processes may use it.

    Attributes:
        storage: The storage.
    """

    def __init__(self, storage: Path, on_long_read: Callable[[int], None] | None = None) -> None:
        """Read nothing yet.

        Args:
            storage: The storage.
            on_long_read: Called with the number of all runs once `LONG_READ` of them were read.
        """
        self.storage, self._on_long_read = storage, on_long_read
        mount = mount_of(storage / "runs")
        is_local = mount is not None and mount.is_local
        self._stat: Stat = os.stat if is_local else _stat_opened
        self._settled_ns = int(1e9 * (SETTLED_SECONDS if is_local else SETTLED_SECONDS_ELSEWHERE))
        # Texts, because making paths takes longer than all else of a look.
        self._runs, self._file = str(storage / "runs"), RunPaths(storage).state.name
        self._ids: Sequence[str] = ()
        self._known = dict[str, IndexRow]()
        self._is_loaded, self._unsaved = False, 0

    def states(self, wanted: Filter = EVERY_RUN, *, before: str | None = None) -> Iterator[RunState]:
        """Yield the states of the runs that a filter lets through, as `jobs.runs.state.states` does, newest first.

        Args:
            wanted: The filter.
            before: Id of a run; only those that are listed after it are yielded.
        """
        for found in self._look(before):
            if not wanted.is_recent(found):
                return
            if wanted.matches(found):
                yield found.to_state() if isinstance(found, IndexRow) else found

    def fill(self, is_stopping: Event) -> None:
        """Read the states of all runs, until the server stops, and save them."""
        for _ in self._look():
            if is_stopping.is_set():
                return
        self.save()

    def save(self) -> None:
        """Write what is known to the file of the index, if that saves the next process more time than it takes."""
        if self._unsaved < max(READS_BEFORE_SAVE, len(self._known) // SAVE_SHARE):
            return
        known, self._unsaved = self._known.copy(), 0
        rows = {run_id: known[run_id] for run_id in self._ids if run_id in known}
        index_file.write_rows(self.storage, rows)

    def _look(self, before: str | None = None) -> Iterator[RunState | IndexRow]:
        """Yield what is known or read of each run, newest first."""
        self._ids = ids = run_state.all_ids(self.storage)
        self._forget_deleted(ids)
        last = None if before is None else run_state.age_key(before)
        for number, run_id in enumerate(reversed(ids)):
            if last is not None and run_state.age_key(run_id) >= last:
                continue
            if number >= READ_WITHOUT_FILE and not self._is_loaded:
                self._load()
            found = self._find(run_id)
            if found is not None:
                yield found

    def _find(self, run_id: str) -> RunState | IndexRow | None:
        stamp = self._stamp(run_id)  # before the file is read: a later change is seen
        known = self._known.get(run_id)
        if known is not None and known.stamp == stamp:
            return known
        settled = time.time_ns() - self._settled_ns
        state = run_state.state_or_damaged(self.storage, run_id)
        # A damaged file may be unreadable for a moment only.
        if state is None or stamp is None or max(stamp[:2]) > settled or state.state == run_state.DAMAGED:
            self._known.pop(run_id, None)
        else:
            self._known[run_id] = IndexRow.of(state, stamp)
            self._unsaved += 1
            if self._unsaved == LONG_READ and self._on_long_read:
                self._on_long_read(len(self._ids))
        return state

    def _stamp(self, run_id: str) -> list[int] | None:
        """Return times of content and of the file's record in ns, size in bytes and inode; None if there is no file."""
        try:
            found = self._stat(f"{self._runs}/{run_id}/{self._file}")
        except OSError:
            return None
        return [found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino]

    def _load(self) -> None:
        self._is_loaded = True
        self._known = index_file.read_rows(self.storage) | self._known

    def _forget_deleted(self, ids: Sequence[str]) -> None:
        if len(self._known) > len(ids):
            for gone in self._known.keys() - set(ids):
                self._known.pop(gone, None)


def _stat_opened(file: str) -> os.stat_result:
    """Return the stat of a file that was opened for it: only then does a network file system ask the server for it."""
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.fstat(handle)
    finally:
        os.close(handle)
