"""`stop.json`: the wish that the running attempt save a checkpoint and stop. Known to the trainer too."""

import contextlib
from typing import Any

from cluster.errors import StorageError
from cluster.files import locked, read_json, write_json
from cluster.run_paths import RunPaths


def ask_to_stop(paths: RunPaths, reason: str, attempt: int, **more: float | bool) -> None:
    """Ask an attempt to save a checkpoint and stop; an earlier wish stands, but a cancel goes before all others."""
    with locked(paths.folder / ".stop.lock"):
        earlier = stop_wish(paths, attempt)
        if earlier and not (reason == "cancel" and (more or earlier["reason"] != "cancel")):
            return
        # To the trainer a window and overtime are the same; it knows cancel, drain and window.
        write_json(paths.stop, {"reason": reason, "attempt": attempt, **more})


def stop_wish(paths: RunPaths, attempt: int) -> dict[str, Any] | None:
    """Return the wish to stop an attempt, if there is one."""
    if not paths.stop.exists():
        return None
    with contextlib.suppress(StorageError):
        wish = read_json(paths.stop)
        if wish.get("attempt") in (None, attempt):
            return dict(wish)
    return None
