"""Keeps the audit of a data set in the storage, where reports and model cards find it by the digest of the data set.

Imports nothing of the audit itself: it needs scikit-learn.
"""

from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from cluster.files import read_json, write_json


def save_audit(storage: Path, digest: str, audit: dict[str, Any]) -> None:
    """Write the audit, as JSON values, atomically.

    Raises:
        OSError: The storage is full or not writable.
    """
    path = _path(storage, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, audit)


def read_audit(storage: Path, digest: str) -> dict[str, Any] | None:
    """Return the audit of a data set as JSON values, None if there is none that can be read."""
    try:
        found = read_json(_path(storage, digest))
    except (StorageError, OSError):
        return None
    return found if isinstance(found, dict) and {"checks", "sentence", "images", "total"} <= found.keys() else None


def _path(storage: Path, digest: str) -> Path:
    return storage / "audits" / f"{digest}.json"
