"""Whether a storage is there: a folder whose share is not mounted has no runs, and no `storage.json` with its id."""

import secrets
from pathlib import Path

from cluster.access import why_not
from cluster.errors import StorageAway, StorageError
from cluster.files import locked, read_json, write_json

MARKER = "storage.json"


def refuse_away(runs: Path) -> None:
    """Check that the folder of runs is there, before a file that is missing in it counts as deleted.

    Args:
        runs: `STORAGE/runs`. Whoever uses a storage creates it.

    Raises:
        StorageAway: It is not.
    """
    try:
        cause = None if runs.is_dir() else "does not exist"
    except OSError as error:
        cause = f"cannot be read ({error.strerror})"
    if cause:
        raise StorageAway(
            f"the storage {runs.parent} cannot be read: {runs} {cause}; mount the share again, or look at its server"
        )


def read_storage_id(storage: Path) -> str | None:
    """Return the id of a storage, or None if it has no marker file.

    Raises:
        StorageError: The marker file is damaged.
    """
    file = storage / MARKER
    if not file.exists():
        return None
    value = read_json(file)
    found = value.get("id") if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise StorageError(f"{file} is damaged: it has no id; restore it from a backup, or delete it")
    return found


def ensure_storage_id(storage: Path) -> str:
    """Return the id of a storage; write the marker file if there is none.

    Raises:
        StorageError: The marker file is damaged or cannot be written.
    """
    with locked(storage / ".storage.lock"):
        if (found := read_storage_id(storage)) is not None:
            return found
        new = secrets.token_hex(8)
        try:
            write_json(storage / MARKER, {"id": new})
        except OSError as error:
            reason = why_not(error, storage / MARKER, "free some space")
            raise StorageError(f"{storage / MARKER} cannot be written: {reason}") from error
        return new
