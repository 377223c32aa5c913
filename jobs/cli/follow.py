"""Follow runs until they end, with a progress bar on a terminal and plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cluster.run_paths import RunPaths
from jobs.cli.terminal import table_cell, terminal_text
from jobs.runs.record import read_progress
from jobs.runs.state import RunState, read_state

Step = tuple[RunState, dict[str, Any]]

POLL_SECONDS = 0.3
LINE_EVERY_SECONDS = 15.0  # without a terminal: a line at least this often, and at each epoch


def follow(storage: Path, run_id: str, *, timeout_seconds: float | None = None) -> Iterator[Step]:
    """Yield the state and progress of a run a few times a second, until it has ended or the timeout is over."""
    paths, until = RunPaths.of(storage, run_id), time.monotonic() + (timeout_seconds or float("inf"))
    while True:
        state = read_state(paths)
        yield state, read_progress(paths)
        if state.has_ended or time.monotonic() > until:
            return
        time.sleep(POLL_SECONDS)


def show_progress(
    storage: Path,
    run_id: str,
    *,
    out: TextIO | None = None,
    timeout_seconds: float | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> RunState:
    """Show the progress of a run on `out` (default: stderr) until it ends and return its last state.

    `meanwhile` is called at each step.
    """
    out = out or sys.stderr
    steps = _calling(follow(storage, run_id, timeout_seconds=timeout_seconds), meanwhile)
    return _with_bar(steps, out) if out.isatty() else _with_lines(steps, out)


def _calling(steps: Iterator[Step], meanwhile: Callable[[], None]) -> Iterator[Step]:
    for step in steps:
        meanwhile()
        yield step


def describe(state: RunState, progress: dict[str, Any]) -> str:
    """Return one line with the state of a run, or with the progress of a running one."""
    if state.state != "running":
        return f"{state.state}: {state.why}" if state.why else state.state
    parts = [str(progress.get("phase", "starting"))]
    if progress.get("epochs") and "trials" in progress:  # of a search: trials that have ended, and all trials
        parts = [f"trial {min(progress.get('epoch', 0) + 1, progress['epochs'])}/{progress['epochs']}"]
    elif progress.get("epochs"):
        parts.append(f"epoch {progress.get('epoch', 0)}/{progress['epochs']}")
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


def _with_lines(steps: Iterator[Step], out: TextIO) -> RunState:
    printed: tuple[Any, ...] = ()
    printed_at = 0.0
    for state, progress in steps:
        running = state.state == "running"
        current = (
            state.state,
            state.attempt,
            *(progress.get(key, "starting") for key in ("phase", "epoch") if running),
        )
        if current != printed or time.monotonic() - printed_at > LINE_EVERY_SECONDS:
            text = state.state if state.has_ended else describe(state, progress)  # the reason follows, whole
            print(terminal_text(f"{state.id}: {text}"), file=out, flush=True)
            printed, printed_at = current, time.monotonic()
    return state


def _with_bar(steps: Iterator[Step], out: TextIO) -> RunState:
    columns = (TextColumn("{task.fields[run]}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(file=out)) as bar:
        task: TaskID | None = None
        for state, progress in steps:
            if task is None:
                task = bar.add_task("", run=state.id, total=None)
            total, completed = _total_and_completed(state, progress)
            description = state.state if state.has_ended else describe(state, progress)  # the reason follows, whole
            bar.update(task, description=table_cell(description), total=total, completed=completed)
    return state


def _total_and_completed(state: RunState, progress: dict[str, Any]) -> tuple[float | None, float]:
    """Return the bar's total, None while it is unknown, and how much of it is completed."""
    epochs, total = progress.get("epochs"), progress.get("total")
    if state.has_ended:
        return 1, 1
    if not total or state.state != "running":
        return None, 0
    within = min(1.0, progress.get("done", 0) / total)
    if progress.get("phase") == "train" and epochs:
        return epochs, max(0, progress.get("epoch", 1) - 1) + within
    return 1, within
