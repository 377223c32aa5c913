"""Keeps the audit of a data set in the storage, where reports find it by the digest of the data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import StorageError
from cluster.files import read_json, write_json

if TYPE_CHECKING:
    from trainer.audit.audit import Audit  # it imports the classifiers of scikit-learn, which a report does not need


def save_audit(storage: Path, digest: str, audit: "Audit") -> None:
    """Write the audit atomically.

    Raises:
        OSError: The storage is full or not writable.
    """
    path = _path(storage, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, audit.to_json())


def read_audit(storage: Path, digest: str) -> dict[str, Any] | None:
    """Return the audit of a data set as JSON values, None if there is none that can be read."""
    try:
        found = read_json(_path(storage, digest))
    except (StorageError, OSError):
        return None
    return found if isinstance(found, dict) and {"checks", "sentence", "images", "total"} <= found.keys() else None


def _path(storage: Path, digest: str) -> Path:
    return storage / "audits" / f"{digest}.json"
