"""`nightshift list`: read from the run folders, so it works without Redis."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice, takewhile
from typing import Any

import click

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.option_types import Duration
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
    Column(title="TAGS", importance=1, least=8),
    Column(title="OWNER", importance=1, least=8),
    Column(title="KIND", importance=1),  # the id begins with it
    Column(title="STATE", style=colored_state),
    Column(title="BEST", importance=5),
    Column(title="AGE", importance=2),
    Column(title="PROGRESS", importance=3, least=12),
)
IF_ANY = ("TAGS", "OWNER")  # columns that are left out if all their cells are empty
KINDS = ("train", "evaluate", "search", "predict", "export")

FILTER = OptionGroup(
    "Filter",
    (
        click.option("--state", type=click.Choice((*run_state.STATES, run_state.DAMAGED)),
                     help="Show only runs in this state."),
        click.option("--kind", type=click.Choice(KINDS), help="Show only runs of this kind."),
        click.option("--name", metavar="PATTERN",
                     help="Show only runs with this in their names; * and ? stand for any characters."),
        click.option("--tag", "tags", multiple=True, metavar="TAG",
                     help="Show only runs with this tag; can be repeated, for runs with all of the tags."),
        click.option("--mine", is_flag=True,
                     help="Show only runs that you submitted: the user of the system, or NIGHTSHIFT_USER."),
        click.option("--since", "since_seconds", type=Duration(),
                     help="Show only runs submitted in this time, such as 7d."),
        click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), metavar="N",
                     help="Show only the N newest matching runs."),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which runs to list; None and an empty tuple let every run through.

    Attributes:
        state: Their state.
        kind: Their kind.
        name: A part of their name, or a pattern with * and ?.
        tags: Tags that they all have.
        owner: Who submitted them.
        since_seconds: The longest time since they were submitted.
    """

    state: str | None
    kind: str | None
    name: str | None
    tags: tuple[str, ...]
    owner: str | None
    since_seconds: float | None

    def is_recent(self, run: RunState) -> bool:
        """Whether the run was submitted in the time asked for; runs come newest first."""
        return self.since_seconds is None or _age(run) <= self.since_seconds

    def matches(self, run: RunState) -> bool:
        """Whether all else that was asked for is true of the run."""
        pattern = None if self.name is None else self.name if set("*?") & set(self.name) else f"*{self.name}*"
        return (
            self.state in (None, run.state)
            and self.kind in (None, run.kind)
            and self.owner in (None, run.owner)
            and set(self.tags) <= set(run.tags)
            and (pattern is None or fnmatchcase(run.name or "", pattern))
        )


@command(name="list", example="nightshift list --state running\nnightshift list --tag chest --mine --since 7d")
@options(FILTER, OptionGroup("Output", (json_option("Print the runs as JSON."),)))
def list_runs(*, limit: int, as_json: bool, mine: bool, **given: Any) -> None:
    """List runs, newest first, with state, progress, best metric and age."""
    settings = Settings.read()
    storage, wanted = settings.storage, Filter(owner=settings.owner if mine else None, **given)
    matching = filter(wanted.matches, takewhile(wanted.is_recent, run_state.states(storage)))
    rows = [(found, _progress(RunPaths.of(storage, found.id), found)) for found in islice(matching, limit)]
    if as_json:
        click.echo(json.dumps([_row_json(found, progress) for found, progress in rows], indent=2))
        return
    if not rows:
        click.echo("no runs; `nightshift train SHARDS` submits one", err=True)
    cells = [_row(found, progress) for found, progress in rows]
    shown = [at for at, column in enumerate(COLUMNS) if column.title not in IF_ANY or any(row[at] for row in cells)]
    columns = [COLUMNS[at] for at in shown]
    click.echo(table_text(columns, [[row[at] for at in shown] for row in cells], output_width()))


def _progress(paths: RunPaths, state: RunState) -> dict[str, Any]:
    return read_progress(paths) if state.state == "running" else {}


def _row_json(state: RunState, progress: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.to_json().items() if key != "notify"} | {"progress": progress}


def _row(state: RunState, progress: dict[str, Any]) -> tuple[str, ...]:
    metric = f"{state.metric[0]} {state.metric[1]:.4f}" if state.metric else ""
    step = describe(state, progress) if state.state == "running" else (state.why or "")
    return (
        state.id,
        state.name or "",
        ",".join(state.tags),
        state.owner or "",
        state.kind,
        state.state,
        metric,
        duration(_age(state)),
        " ".join(step.split()),
    )


def _age(state: RunState) -> float:
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(state.created)).total_seconds())
