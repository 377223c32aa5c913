"""The states of all runs in memory: a state is read again only if its file has changed.

The folders are the truth: each pass lists them and looks at the time and size of every `state.json` that it passes
over, which takes microseconds where reading and checking the file takes a tenth of a millisecond.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import TypeAlias

from cluster.run_paths import RunPaths
from jobs.runs import state as run_state
from jobs.runs.state import RunState

_Stamp: TypeAlias = tuple[int, int, int, int]  # times of content and of the file's record in ns, size in bytes, inode


class RunIndex:
    """The states of the runs of a storage. Several threads may use it.

    Attributes:
        storage: The storage.
    """

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self._runs, self._file = str(storage / "runs"), RunPaths(storage).state.name
        self._known = dict[str, tuple[_Stamp, RunState]]()

    def states(self, *, before: str | None = None) -> Iterator[RunState]:
        """Yield what `jobs.runs.state.states` yields: the state of every run, newest first.

        Args:
            before: Id of a run; only those that are listed after it are read.
        """
        ids = run_state.all_ids(self.storage)
        if len(self._known) > len(ids):
            for gone in self._known.keys() - set(ids):
                self._known.pop(gone, None)
        for run_id in reversed(ids):
            if before is not None and run_state.age_key(run_id) >= run_state.age_key(before):
                continue
            state = self._state(run_id)
            if state is not None:
                yield state

    def fill(self, is_stopping: Event) -> None:
        """Read the states of all runs, until the server stops."""
        for _ in self.states():
            if is_stopping.is_set():
                return

    def _state(self, run_id: str) -> RunState | None:
        # A text, because making paths takes longer than all else of a pass.
        stamp = _stamp(f"{self._runs}/{run_id}/{self._file}")  # before the file is read: a later change is seen
        known = self._known.get(run_id)
        if known is not None and known[0] == stamp:
            return known[1]
        state = run_state.state_or_damaged(self.storage, run_id)
        if state is None or stamp is None or state.state == run_state.DAMAGED:
            self._known.pop(run_id, None)  # a damaged file may be unreadable for a moment only
        else:
            self._known[run_id] = (stamp, state)
        return state


def _stamp(file: str) -> _Stamp | None:
    try:
        found = os.stat(file)  # noqa: PTH116
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
