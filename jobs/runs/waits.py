"""What keeps a run from starting: a time, another run, a window."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.errors import ClusterError
from cluster.run_paths import RunPaths
from cluster.windows import TimeWindow
from jobs.runs.request import JobRequest
from jobs.runs.state import read_state


@dataclass(frozen=True)
class Verdict:
    """Why a run may not start, and whether it ever may."""

    why: str
    never: bool = False


def blocked_by(storage: Path, wanted: JobRequest, moment: datetime | None = None) -> Verdict | None:
    """Return what keeps a run from starting now, None when nothing does."""
    here = moment or datetime.now().astimezone()
    if wanted.at and wanted.at.astimezone(UTC) > here.astimezone(UTC):
        return Verdict(f"waits until {wanted.at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    for run_id in wanted.after:
        try:
            other = read_state(RunPaths.of(storage, run_id))
        except ClusterError:
            return Verdict(f"{run_id}, which it was to follow, was deleted", never=True)
        if other.has_ended and other.state != "succeeded":
            return Verdict(f"{run_id}, which it was to follow, ended as {other.state}", never=True)
        if other.state != "succeeded":
            return Verdict(f"waits for {run_id}")
    if wanted.window and not TimeWindow.parse(wanted.window).closes(here):
        return Verdict(f"waits for its window {wanted.window}")
    return None
