"""When a run that waits will start, and what it waits for, in words; read from the storage, without Redis."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from cluster.errors import NewerVersion, StorageError, UnknownRun
from cluster.run_paths import RunPaths
from cluster.windows import TimeWindow, local_now
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest, read_request
from jobs.runs.state import PRIORITIES, RunState, age_key, read_state

WAITING = ("queued", "scheduled")  # states of runs with a forecast of their start
MOST_PENDING = 1000  # runs that are read to say how many are before one
MOST_NAMED = 2  # running runs that a line names
NEXT = "next to start, when a job worker of its queue is free; `nightshift queue show` counts them"
PAUSED = "the queues are paused; `nightshift queue resume` opens them"
UNSERVED = "no job worker serves its queue; start one with `nightshift worker`, or `nightshift up` on this machine"
OWN_CLUSTER = "waits for the Ray cluster of its RayJob"
MINUTES = 60  # of an hour


def start_forecast(
    storage: Path,
    state: RunState,
    pending: Sequence[RunState] | None = None,
    *,
    paused: bool = False,
    unserved: bool = False,
) -> str:
    """Return when a queued or scheduled run starts, or for what it waits, after why it was queued again; else empty.

    Args:
        storage: The storage.
        state: The run.
        pending: What `pending_states` returned; None reads it if it is needed.
        paused: Whether the queues are paused, so that no queued run starts.
        unserved: Whether no job worker serves the queue of a queued run.
    """
    if state.state == "queued" and (state.own_cluster or state.too_new_for is not None):  # no job worker may start it
        return state.why or (OWN_CLUSTER if state.own_cluster else "")
    if state.state == "queued":
        forecast = PAUSED if paused else UNSERVED if unserved else ""
        forecast = forecast or _in_the_queue(state, pending_states(storage) if pending is None else pending)
        return f"{state.why}; {forecast}" if state.why else forecast
    if state.state != "scheduled":
        return ""
    try:
        request = read_request(RunPaths.of(storage, state.id))
    except NewerVersion as error:
        return str(error)
    except StorageError:
        return state.why or ""
    text = _scheduled(storage, request) or state.why or ""
    return f"{text}; the queues are paused now" if text and paused else text


def pending_states(storage: Path) -> list[RunState]:
    """Return the states of the oldest `MOST_PENDING` runs that have not ended, without damaged ones."""
    found = (_state(storage, run_id) for run_id in islice(run_state.pending_ids(storage), MOST_PENDING))
    return [state for state in found if state is not None]


def run_label(state: RunState) -> str:
    """Return how to call a run in a sentence: by its name if it has one, else by its id."""
    return state.name or state.id


def _scheduled(storage: Path, request: JobRequest) -> str:
    here = local_now(request.timezone)
    if request.at is not None and request.at.astimezone(UTC) > here.astimezone(UTC):
        return f"starts at {_moment(request.at.astimezone(here.tzinfo), here)}"
    for run_id in request.after:
        paths = RunPaths.of(storage, run_id)
        if not paths.folder.exists():
            return f"cannot start: {run_id}, which it was to follow, was deleted"
        other = _state(storage, run_id)
        if other is not None and other.has_ended and other.state != "succeeded":
            return f"cannot start: {run_label(other)}, which it was to follow, ended as {other.state}"
        if other is not None and other.state != "succeeded":
            return f"starts after {run_label(other)}, which is {other.state}"
    if request.window and not TimeWindow.parse(request.window).closes(here):
        opens = TimeWindow.parse(request.window).opens(here)
        return f"starts when its window {request.window} opens, at {_moment(opens, here)}"
    return ""


def _in_the_queue(state: RunState, pending: Sequence[RunState]) -> str:
    others = [one for one in pending if one.id != state.id]
    queued = [one for one in others if one.state == "queued" and one.too_new_for is None]
    before = [one for one in queued if _order(one) < _order(state)]
    running = [run_label(one) for one in others if one.state == "running"]
    parts = [f"{len(before)} queued {'run is' if len(before) == 1 else 'runs are'} before it"] if before else []
    if running:
        more = f" and {len(running) - MOST_NAMED} more" if len(running) > MOST_NAMED else ""
        parts.append(f"running: {', '.join(running[:MOST_NAMED])}{more}")
    return "; ".join(parts if before else ["next to start", *parts]) if parts else NEXT


def _order(state: RunState) -> tuple[int, str]:
    return PRIORITIES.index(state.priority), age_key(state.id)


def _moment(then: datetime, now: datetime) -> str:
    day = "" if then.date() == now.date() else f"{then:%Y-%m-%d} "
    minutes = max(1, round((then.astimezone(UTC) - now.astimezone(UTC)).total_seconds() / 60))
    hours = f"{minutes // MINUTES}h{minutes % MINUTES:02}m"
    return f"{day}{then:%H:%M} (in {f'{minutes}m' if minutes < MINUTES else hours})"


def _state(storage: Path, run_id: str) -> RunState | None:
    try:
        return read_state(RunPaths.of(storage, run_id))
    except (StorageError, UnknownRun):
        return None
