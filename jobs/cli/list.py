"""`nightshift list`: read from the run folders, so it works without Redis."""

import json
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.options import OptionGroup, json_option, options
from jobs.cli.run_view import describe, duration
from jobs.cli.terminal import colored_state
from jobs.cli.text_table import Column, output_width, table_text
from jobs.runs import state as run_state
from jobs.runs.record import read_progress
from jobs.runs.state import RunState

COLUMNS = (
    Column(title="ID"),
    Column(title="NAME", importance=4, least=8),
    Column(title="KIND", importance=1),  # the id begins with it
    Column(title="STATE", style=colored_state),
    Column(title="BEST", importance=5),
    Column(title="AGE", importance=2),
    Column(title="PROGRESS", importance=3, least=12),
)
KINDS = ("train", "evaluate", "search", "predict", "export")

FILTER = OptionGroup(
    "Filter",
    (
        click.option("--state", type=click.Choice((*run_state.STATES, run_state.DAMAGED)),
                     help="Show only runs in this state."),
        click.option("--kind", type=click.Choice(KINDS), help="Show only runs of this kind."),
        click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), metavar="N",
                     help="Show only the N newest matching runs."),
    ),
)  # fmt: skip


@command(name="list", example="nightshift list --state running")
@options(FILTER, OptionGroup("Output", (json_option("Print the runs as JSON."),)))
def list_runs(state: str | None, kind: str | None, limit: int, as_json: bool) -> None:
    """List runs, newest first, with state, progress, best metric and age."""
    storage = Settings.read().storage
    matching = (s for s in run_state.states(storage) if state in (None, s.state) and kind in (None, s.kind))
    rows = [(found, _progress(RunPaths.of(storage, found.id), found)) for found in islice(matching, limit)]
    if as_json:
        click.echo(json.dumps([_row_json(found, progress) for found, progress in rows], indent=2))
        return
    if not rows:
        click.echo("no runs; `nightshift train SHARDS` submits one", err=True)
    click.echo(table_text(COLUMNS, [_row(found, progress) for found, progress in rows], output_width()))


def _progress(paths: RunPaths, state: RunState) -> dict[str, Any]:
    return read_progress(paths) if state.state == "running" else {}


def _row_json(state: RunState, progress: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.to_json().items() if key != "notify"} | {"progress": progress}


def _row(state: RunState, progress: dict[str, Any]) -> tuple[str, ...]:
    metric = f"{state.metric[0]} {state.metric[1]:.4f}" if state.metric else ""
    age = (datetime.now(UTC) - datetime.fromisoformat(state.created)).total_seconds()
    step = describe(state, progress) if state.state == "running" else (state.why or "")
    return state.id, state.name or "", state.kind, state.state, metric, duration(max(0, age)), " ".join(step.split())
