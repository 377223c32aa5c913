"""What keeps a run from starting: a time, another run, a window."""

from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from cluster.errors import StorageError, UnknownRun
from cluster.run_paths import RunPaths
from cluster.windows import TimeWindow, local_now
from jobs.runs.request import JobRequest
from jobs.runs.start_forecast import run_label
from jobs.runs.state import read_state


@dataclass(frozen=True)
class StartBlocker:
    """Why a run may not start, and whether it ever may."""

    why: str
    never: bool = False


def start_blocker(storage: Path, request: JobRequest) -> StartBlocker | None:
    """Return what keeps a run from starting now, None when nothing does."""
    here = local_now(request.timezone)
    if request.at and request.at.astimezone(UTC) > here.astimezone(UTC):
        return StartBlocker(f"waits until {request.at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    for run_id in request.after:
        if blocker := _blocked_by_run(storage, run_id):
            return blocker
    if request.window and not TimeWindow.parse(request.window).closes(here):
        return StartBlocker(f"waits for its window {request.window}")
    return None


def _blocked_by_run(storage: Path, run_id: str) -> StartBlocker | None:
    try:
        other = read_state(RunPaths.of(storage, run_id))
    except UnknownRun:
        return StartBlocker(f"{run_id}, which it was to follow, was deleted", never=True)
    except StorageError:
        return StartBlocker(f"waits for {run_id}, whose state.json is damaged")
    if other.has_ended and other.state != "succeeded":
        return StartBlocker(f"{run_id}, which it was to follow, ended as {other.state}", never=True)
    return None if other.state == "succeeded" else StartBlocker(f"waits for {run_label(other)}")
