"""What a run is doing, in words."""

from datetime import UTC, datetime
from typing import Any

from jobs.runs.state import RunState


def describe(state: RunState, progress: dict[str, Any]) -> str:
    """Return one line with the state of a run, or with the progress of a running one."""
    if state.state != "running":
        return f"{state.state}: {state.reason}" if state.reason else state.state
    parts = [str(progress.get("phase", "starting"))]
    if progress.get("epochs") and "trials" in progress:  # of a search: trials that have ended, and all trials
        parts = [f"trial {min(progress.get('epoch', 0) + 1, progress['epochs'])}/{progress['epochs']}"]
    elif progress.get("epochs"):
        parts.append(f"epoch {progress.get('epoch', 0)}/{progress['epochs']}")
    elif progress.get("epoch"):  # of a fit, whose number of steps is not known before
        parts.append(f"step {progress['epoch']}")
    if progress.get("images_per_second"):
        parts.append(f"{progress['images_per_second']:.0f} images/s")
    if progress.get("eta_seconds") is not None:
        parts.append(f"{duration(progress['eta_seconds'])} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds in a readable form: 42s, 3m10s, 5h02m, 2d04h."""
    whole = int(seconds)
    for unit, below, size, small in (("d", "h", 86_400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02}{below}"
    return f"{whole}s"


def ago(text: str | None) -> str:
    """Return the age of a time, such as `3m10s ago`; "" for None.

    Args:
        text: RFC 3339, with a time zone. A time ahead of this machine's clock is 0 s ago.
    """
    if text is None:
        return ""
    return f"{duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()))} ago"


def total_and_completed(state: RunState, progress: dict[str, Any]) -> tuple[float | None, float]:
    """Return the bar's total, None while it is unknown, and how much of it is completed."""
    epochs, total = progress.get("epochs"), progress.get("total")
    if state.has_ended:
        return 1, 1
    if not total or state.state != "running":
        return None, 0
    within = min(1.0, progress.get("done", 0) / total)
    if "trials" in progress and epochs:  # of a search: trials that ended early count as whole ones
        return 1, max(within, min(1.0, progress.get("epoch", 0) / epochs))
    if progress.get("phase") == "train" and epochs:
        return epochs, max(0, progress.get("epoch", 1) - 1) + within
    return 1, within
