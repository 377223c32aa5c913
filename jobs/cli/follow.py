"""Follow runs until they end, with a progress bar on a terminal and plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live

from cluster.run_paths import RunPaths
from jobs.cli.run_view import RunView
from jobs.cli.terminal import terminal_text, waits_for_storage
from jobs.runs.progress_text import describe
from jobs.runs.record import read_progress
from jobs.runs.state import RunState, read_state

Step = tuple[RunState, dict[str, Any]]

POLL_SECONDS = 0.3
LINE_EVERY_SECONDS = 15.0  # without a terminal: a line at least this often, and at each epoch


def follow(storage: Path, run_id: str, *, until: float = float("inf")) -> Iterator[Step]:
    """Yield the state and progress of a run a few times a second, until it has ended or the time `until` has come.

    A storage that does not answer for a moment only delays them.
    """
    paths, patience = RunPaths.of(storage, run_id), waits_for_storage()
    while True:
        state, progress = patience.call(lambda: (read_state(paths), read_progress(paths)), until=until)
        yield state, progress
        if state.has_ended or time.monotonic() > until:
            return
        time.sleep(POLL_SECONDS)


def show_progress(
    storage: Path,
    run_id: str,
    *,
    until: float = float("inf"),
    meanwhile: Callable[[], None] = lambda: None,
) -> RunState:
    """Show the progress of a run on stderr until it ends and return its last state.

    Args:
        storage: The storage.
        run_id: The run.
        until: When to stop, as a time of the monotonic clock.
        meanwhile: Called at each step.
    """
    steps = _calling(follow(storage, run_id, until=until), meanwhile)
    return _with_view(storage, steps, sys.stderr, until) if sys.stderr.isatty() else _with_lines(steps, sys.stderr)


def _calling(steps: Iterator[Step], meanwhile: Callable[[], None]) -> Iterator[Step]:
    for step in steps:
        meanwhile()
        yield step


def _with_lines(steps: Iterator[Step], out: TextIO) -> RunState:
    printed: tuple[Any, ...] = ()
    printed_at = 0.0
    for state, progress in steps:
        running = state.state == "running"
        current = (
            state.state,
            state.attempt,
            *((progress.get("phase", "starting"), progress.get("epochs") and progress.get("epoch")) if running else ()),
        )
        if current != printed or time.monotonic() - printed_at > LINE_EVERY_SECONDS:
            text = state.state if state.has_ended else describe(state, progress)  # the reason follows, whole
            print(terminal_text(f"{state.id}: {text}"), file=out, flush=True)
            printed, printed_at = current, time.monotonic()
    return state


def _with_view(storage: Path, steps: Iterator[Step], out: TextIO, until: float) -> RunState:
    console = Console(file=out)
    view, patience = RunView(storage), waits_for_storage()
    with Live(console=console, refresh_per_second=4) as live:
        for state, progress in steps:
            live.update(patience.call(partial(view.updated, state, progress, console.width), until=until))
    return state
