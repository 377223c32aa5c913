"""`storage.json`: the marker file with the id of a storage. A folder whose share is not mounted does not have it."""

import secrets
from pathlib import Path

from cluster.access import why_not
from cluster.errors import StorageError
from cluster.files import locked, read_json, write_json

MARKER = "storage.json"


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
