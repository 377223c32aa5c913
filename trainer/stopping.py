"""`stop.json`: somebody asks the running attempt to save a checkpoint and end."""

import time
from dataclasses import dataclass

from cluster.errors import StorageError
from cluster.files import read_json
from cluster.run_paths import RunPaths

LOOK_SECONDS = 0.2


@dataclass
class StopSign:
    """Looks for `stop.json`, often enough for a person and seldom enough for a network file system."""

    paths: RunPaths
    attempt: int
    _looked: float = 0.0
    _reason: str | None = None

    def reason(self) -> str | None:
        """Return why this attempt shall stop ("cancel", "drain", "window"), or None."""
        if self._reason is None and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._reason = self._read()
        return self._reason

    def _read(self) -> str | None:
        if not self.paths.stop.exists():
            return None
        try:
            wish = read_json(self.paths.stop)
        except StorageError:
            return None  # withdrawn between the two looks
        if wish.get("attempt") not in (None, self.attempt):
            return None
        return str(wish.get("reason", "cancel"))
