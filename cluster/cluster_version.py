"""`cluster.json` of the storage: the version of Nightshift that the last run on the Ray cluster had.

A cluster has an installation of its own, and its Jobs API says only which version of Ray it has.
"""

import contextlib
from pathlib import Path

from cluster.errors import StorageError
from cluster.files import read_json_object, write_json
from cluster.version import VERSION

FILE = "cluster.json"


def record_cluster_version(storage: Path) -> None:
    """Write the version of this process, a trainer on the cluster; a failure to write ends no run."""
    with contextlib.suppress(OSError):
        if read_cluster_version(storage) != VERSION:
            write_json(storage / FILE, {"nightshift": VERSION}, durable=False)


def read_cluster_version(storage: Path) -> str | None:
    """Return the version that the last run on the cluster had; None if no run has recorded one."""
    try:
        found = read_json_object(storage / FILE).get("nightshift")
    except StorageError:
        return None
    return found if isinstance(found, str) else None
