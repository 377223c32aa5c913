"""When a run that waits will start, with what Redis says of the queues."""

from pathlib import Path

from cluster.settings import Settings
from jobs.runs.start_forecast import start_forecast
from jobs.runs.state import RunState


def forecast_of(storage: Path, state: RunState) -> str:
    """Return when a queued or scheduled run starts, or for what it waits; empty for a run in another state."""
    if state.state not in ("queued", "scheduled"):
        return ""
    from jobs.queue.overview import are_known_paused  # noqa: PLC0415  # imports RQ: only for runs that wait

    return start_forecast(storage, state, paused=are_known_paused(Settings.read()))
