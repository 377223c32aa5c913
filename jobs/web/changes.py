"""Server-sent events that tell an open page when what it shows has changed."""

import asyncio
import threading
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from cluster.run_paths import RUN_ID, RunPaths
from jobs.runs.state import pending_ids

LOOK_SECONDS = 1.0
# Looks without a change after which a page loads again: ages, queues and job workers are in no file.
UNCHANGED_LOOKS = 10
MOST_WATCHED = 200  # runs that have not ended
Stamp: TypeAlias = tuple[str, int, int]  # a file, its size in bytes and when it was written, in ns; 0 if absent


class Looks:
    """Looks at the storage once a second for all open pages that show the same, and not once for each of them."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self._coming = dict[str | None, asyncio.Task[tuple[Stamp, ...]]]()

    async def next(self, run_id: str | None) -> tuple[Stamp, ...]:
        """Wait for the next look, which is at most `LOOK_SECONDS` away, and return the stamps that it found.

        Args:
            run_id: The run that the page shows; None for the list of runs.
        """
        if run_id not in self._coming:
            self._coming[run_id] = asyncio.create_task(self._look(run_id))
        return await asyncio.shield(self._coming[run_id])  # other pages wait too if this one is closed

    async def _look(self, run_id: str | None) -> tuple[Stamp, ...]:
        try:
            await asyncio.sleep(LOOK_SECONDS)
            return await run_in_threadpool(stamps, self.storage, run_id)
        finally:
            del self._coming[run_id]


async def changes(
    request: Request, looks: Looks, run_id: str | None, is_stopping: threading.Event
) -> AsyncIterator[str]:
    """Yield a server-sent event for each change, and now and then without one, until the browser closes the connection.

    Args:
        request: The browser's request.
        looks: Of the storage.
        run_id: The run that the page shows; None for the list of runs.
        is_stopping: Set when the server stops.
    """
    seen = await run_in_threadpool(stamps, looks.storage, run_id)
    unchanged = 0
    yield "retry: 3000\n\n"  # ms after which a browser connects again
    while not is_stopping.is_set() and not await request.is_disconnected():
        found, unchanged = await looks.next(run_id), unchanged + 1
        if found != seen or unchanged >= UNCHANGED_LOOKS:
            seen, unchanged = found, 0
            yield "data: changed\n\n"


def stamps(storage: Path, run_id: str | None) -> tuple[Stamp, ...]:
    """Return the sizes and times of the files that a page shows.

    Args:
        storage: The storage.
        run_id: The run; None for the list of runs.
    """
    if run_id is not None:
        paths = RunPaths.of(storage, run_id)
        files = [paths.state, paths.progress, paths.metrics, paths.trials, paths.result, paths.report, paths.log]
        files.append(paths.stop)
        return tuple(_stamp(file) for file in files)
    known = (name for name in _pending(storage) if RUN_ID.fullmatch(name))
    pending = [RunPaths.of(storage, run) for run in islice(known, MOST_WATCHED)]
    files = [storage / "runs", *(file for paths in pending for file in (paths.state, paths.progress))]
    return tuple(_stamp(file) for file in files)


def _pending(storage: Path) -> list[str]:
    try:
        return pending_ids(storage)
    except OSError:  # the storage is away for a moment
        return []


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return (file.name, 0, 0)
    return (str(file), found.st_size, found.st_mtime_ns)
