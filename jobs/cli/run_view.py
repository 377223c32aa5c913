"""What a terminal shows of a run that is followed: spinner, name, bar, progress, and what it waits for."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from cluster import logs
from cluster.run_paths import RunPaths
from jobs.cli.forecast import Forecasts
from jobs.cli.terminal import terminal_text
from jobs.runs.progress_text import describe, duration, total_and_completed
from jobs.runs.start_forecast import WAITING, run_label
from jobs.runs.state import RunState

BAR_WIDTH, LEAST_BAR = 20, 4
GAPS = 4  # the spinner, and the spaces between it, the name, the bar and the progress
ALMOST = 0.999  # of the bar, until the run has ended
FORECAST_SECONDS = 2.0  # between two looks at the queue


class RunView:
    """A line with a spinner and a bar, and below it, before the first progress, what the run does or waits for.

    Where the line would be wider than the terminal, the bar shrinks; if that is not enough, the progress is below it.
    """

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.bar_column = BarColumn(bar_width=BAR_WIDTH)
        self.forecasts = Forecasts(storage)
        self.forecast, self.forecast_at = "", 0.0
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def updated(self, state: RunState, progress: dict[str, Any], width: int) -> RenderableType:
        """Return what to show of a state and its progress on a terminal of `width` columns."""
        if progress.get("attempt", state.attempt) != state.attempt:
            progress = {}  # of the attempt before
        bar = self.bar or self._new_bar(state)
        total, completed = total_and_completed(state, progress)
        if total and not state.has_ended:
            completed = min(completed, ALMOST * total)  # Rich stops the spinner of a bar that is full
        description, below = terminal_text(_description(state, progress)), self._below(state, progress)
        room = width - len(run_label(state)) - GAPS
        if room - len(description) < LEAST_BAR and not below:
            description, below = "", description
        self.bar_column.bar_width = max(LEAST_BAR, min(BAR_WIDTH, room - len(description)))
        bar.update(self.task, description=description, total=total, completed=completed)
        waits = state.state in WAITING  # what for is whole; a line of a log is cut
        line = Text(terminal_text(below), style="dim", no_wrap=not waits, overflow="fold" if waits else "ellipsis")
        return Group(bar.get_renderable(), line) if below else bar.get_renderable()

    def _new_bar(self, state: RunState) -> Progress:
        label = run_label(state)
        self.bar = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[label]}", markup=False, table_column=Column(no_wrap=True, min_width=len(label))),
            self.bar_column,
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        self.task = self.bar.add_task("", label=label, total=None)
        return self.bar

    def _below(self, state: RunState, progress: dict[str, Any]) -> str:
        if state.state in WAITING:
            if not self.forecast_at or time.monotonic() - self.forecast_at > FORECAST_SECONDS:
                self.forecast, self.forecast_at = self.forecasts.of(state), time.monotonic()
            return self.forecast
        if state.state == "running" and _is_starting(progress):
            newest = logs.tail(RunPaths.of(self.storage, state.id).log, 1)[0]
            return logs.COLOR_CODES.sub("", newest).strip()
        return ""


def _description(state: RunState, progress: dict[str, Any]) -> str:
    if state.has_ended or state.state == "scheduled":
        return state.state  # the reason follows, whole
    if state.state == "queued" or (state.state == "running" and _is_starting(progress)):
        since = datetime.fromisoformat(state.changed or state.created)
        seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
        return f"{'starting' if state.state == 'running' else state.state} {duration(seconds)}"
    return describe(state, progress)


def _is_starting(progress: dict[str, Any]) -> bool:
    return bool(progress.get("phase", "starting") == "starting")
