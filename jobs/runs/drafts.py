"""Drafts of runs: a submitter writes `runs/.new-ID` and renames it to `runs/ID`, holding the draft's lock meanwhile.

The kernel releases the lock when the submitter dies, so that whoever meets the draft of a dead submitter can tell, and
deletes it. What the submitter has claimed before, such as a name, is then free again.
"""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from cluster.run_paths import RunPaths


def draft_of(paths: RunPaths) -> RunPaths:
    """Return the paths of a run's draft."""
    return RunPaths(paths.folder.with_name(f".new-{paths.run_id}"))


def is_submitted_or_in_progress(paths: RunPaths) -> bool:
    """Whether a run is published, or a live submitter is about to publish it; the draft of a dead one is deleted."""
    return not delete_dead_draft(paths) and (draft_of(paths).folder.is_dir() or paths.folder.is_dir())


def delete_dead_draft(paths: RunPaths) -> bool:
    """Delete a run's draft if its submitter has died; return whether it was deleted.

    A draft without a lock file is left to `deletion.sweep`: its submitter may be about to create the lock.
    """
    draft = draft_of(paths)
    try:
        handle = draft.lock.open("r+")
    except OSError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            if not _is_same_file(draft.lock, handle.fileno()):  # the submitter published the run in between
                return False
            tombstone = draft.folder.with_name(f".deleted-{paths.run_id}")
            draft.folder.rename(tombstone)
            shutil.rmtree(tombstone, ignore_errors=True)  # `sweep` deletes what is left
            return True
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _is_same_file(path: Path, handle: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(handle))
    return False
