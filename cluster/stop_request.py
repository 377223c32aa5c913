"""`stop.json`: somebody asks the running attempt to save a checkpoint and end."""

from dataclasses import dataclass

from cluster.errors import StorageError
from cluster.files import read_json
from cluster.run_paths import RunPaths


@dataclass
class StopSign:
    """Looks for `stop.json`, and remembers what it read: a stop once seen is not withdrawn."""

    paths: RunPaths
    attempt: int
    _reason: str | None = None

    def reason(self) -> str | None:
        """Return why this attempt shall stop ("cancel", "drain", "window"), or None."""
        if self._reason is None:
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
