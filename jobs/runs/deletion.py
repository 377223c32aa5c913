"""Deletes runs, and what killed submits and deletes have left in the folder of runs."""

import contextlib
import shutil
import time
from pathlib import Path

from cluster.errors import StorageError, UnknownRun
from cluster.run_paths import RunPaths
from jobs.runs import names
from jobs.runs.state import pending_marker, read_state

LEFTOVERS = (".new-*", ".deleted-*")  # what a killed submit or delete leaves
LEFTOVER_SECONDS = 24 * 3600.0


def hide(paths: RunPaths) -> Path:
    """Hide a run by renaming its folder to a tombstone, and delete its marker file and its names.

    Returns:
        The tombstone. The caller deletes it without the run's lock: NFS keeps a file that this machine has open, and
        with it the folder.
    """
    held = _names(paths)
    tombstone = paths.folder.with_name(f".deleted-{paths.run_id}")
    paths.folder.rename(tombstone)
    pending_marker(paths).unlink(missing_ok=True)
    for name in held:
        with contextlib.suppress(OSError, StorageError):  # the run is gone: a name that it keeps can be given again
            names.free(paths.storage, name, paths.run_id)
    return tombstone


def _names(paths: RunPaths) -> list[str]:
    try:
        name = read_state(paths).name
    except (StorageError, UnknownRun):  # a damaged run: look through all names
        return names.names_of(paths.storage, paths.run_id)
    return [name] if name else []


def sweep(storage: Path) -> None:
    """Delete what killed submits and deletes left more than a day ago."""
    for pattern in LEFTOVERS:
        for leftover in (storage / "runs").glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_ctime > LEFTOVER_SECONDS:
                    shutil.rmtree(leftover, ignore_errors=True)
