"""When a run that waits will start, with what Redis says of the queues."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.settings import Settings
from jobs.runs.start_forecast import WAITING, start_forecast
from jobs.runs.state import RunState

if TYPE_CHECKING:
    from jobs.queue.overview import QueueCheck


class Forecasts:
    """The forecasts of a storage's runs; keep it to ask again, as it does not ask a silent Redis each time."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage

    def of(self, state: RunState) -> str:
        """Return when a queued or scheduled run starts, or for what it waits; empty for a run in another state."""
        if state.state not in WAITING:
            return ""
        paused, unserved = self._queue_check.known_faults(state.priority)
        return start_forecast(self.storage, state, paused=paused, unserved=unserved)

    @cached_property
    def _queue_check(self) -> "QueueCheck":
        from jobs.queue.overview import QueueCheck  # noqa: PLC0415  # imports RQ: only for runs that wait

        return QueueCheck(Settings.read())
