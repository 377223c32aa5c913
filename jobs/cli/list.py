"""`nightshift list`: read from the run folders, so it works without Redis, which is asked only if there is none."""

import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cluster.settings import Settings
from cluster.windows import local_now
from jobs.cli.command import command
from jobs.cli.option_groups import OptionGroup, json_option, options
from jobs.cli.option_types import Duration
from jobs.cli.terminal import colored_state
from jobs.cli.text_table import Column, fits, output_width, table_text
from jobs.runs import state as run_state
from jobs.runs.progress_text import describe, duration
from jobs.runs.record import entry_json, running_progress
from jobs.runs.run_filter import KINDS, Filter, age_seconds
from jobs.runs.run_index import RunIndex
from jobs.runs.state import RunState

BEST, PROGRESS = "BEST", "PROGRESS"
ENOUGH = 20  # characters of progress: "train, epoch 120/200"
COLUMNS = (
    Column(title="ID"),
    Column(title="NAME", importance=4, least=8),
    Column(title="TAGS", importance=1, least=8),
    Column(title="OWNER", importance=1, least=8),
    Column(title="KIND", importance=1),  # the id begins with it
    Column(title="STATE", style=colored_state),
    Column(title=BEST, importance=5),
    Column(title="AGE", importance=2),
    Column(title=PROGRESS, importance=3, least=12, enough=ENOUGH, cuts_words=False),
)
UNTIL = re.compile(r"waits until (\S+Z)")  # of `start_blocker`
IF_ANY = ("TAGS", "OWNER")  # columns that are left out if all their cells are empty

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


@command(name="list", example="nightshift list --state running\nnightshift list --tag chest --mine --since 7d")
@options(FILTER, OptionGroup("Output", (json_option("Print the runs as JSON."),)))
def list_runs(*, limit: int, as_json: bool, mine: bool, **given: Any) -> None:
    """List runs, newest first, with state, progress, best metric and age."""
    settings = Settings.read()
    storage, wanted = settings.storage, Filter(owner=settings.owner if mine else None, **given)
    index = RunIndex(storage, _announce)
    rows = [
        (found, running_progress(storage, found)) for found in islice(index.states(wanted), min(limit, sys.maxsize))
    ]
    if settings.redis_url and not settings.runs.exists():
        from jobs.queue.storage_check import refuse_unmounted  # noqa: PLC0415 - redis takes longer than a list

        refuse_unmounted(settings)
    if as_json:
        click.echo(json.dumps([entry_json(found, progress) for found, progress in rows], indent=2))
    else:
        _print_table(rows, _filters(), storage)
    index.save()


def _filters() -> str:
    """Return the filters as they were given."""
    context = click.get_current_context()
    return " ".join(
        one.opts[0]
        for one in context.command.params
        if one.name not in ("limit", "as_json")
        and context.get_parameter_source(one.name or "") is not ParameterSource.DEFAULT
    )


def _announce(runs: int) -> None:
    click.echo(f"reading {runs:,} runs; the next list reads only those that change", err=True)


def _print_table(rows: Sequence[tuple[RunState, dict[str, Any]]], filters: str, storage: Path) -> None:
    if not rows:
        none = f"no run matches {filters}; `nightshift list` shows all runs"
        click.echo(none if filters else f"no runs in {storage}; `nightshift train SHARDS` submits one", err=True)
        return
    cells = [_row(found, progress) for found, progress in rows]
    shown = [at for at, column in enumerate(COLUMNS) if column.title not in IF_ANY or any(row[at] for row in cells)]
    columns, table = [COLUMNS[at] for at in shown], [[row[at] for at in shown] for row in cells]
    width = output_width()
    if not fits(columns, table, width):
        columns, table = _joined(columns, table)
    click.echo(table_text(columns, table, width))


def _joined(columns: list[Column], rows: list[list[str]]) -> tuple[list[Column], list[list[str]]]:
    """Return a table in which best metrics and progress share a column: a run has the one or the other."""
    best, progress = (next(at for at, column in enumerate(columns) if column.title == one) for one in (BEST, PROGRESS))
    metrics = [row[best] for row in rows]
    if not any(metrics) or not any(row[progress] for row in rows):
        return columns, rows
    least = max(ENOUGH, *map(len, metrics))
    joined = Column(title=f"{BEST} / {PROGRESS}", importance=5, least=least, cuts_words=False)
    cells = [", ".join(filter(None, (row[best], row[progress]))) for row in rows]
    return (
        [joined if at == best else column for at, column in enumerate(columns) if at != progress],
        [
            [cell if at == best else other for at, other in enumerate(row) if at != progress]
            for row, cell in zip(rows, cells, strict=True)
        ],
    )


def _waits_here(reason: str) -> str:
    """Return a reason whose time, if it waits for one, is the wall clock of this machine."""
    if not (at := UNTIL.fullmatch(reason)):
        return reason
    here = local_now()
    then = datetime.fromisoformat(at[1]).astimezone(here.tzinfo)
    return f"waits until {then:%H:%M}" if then.date() == here.date() else f"waits until {then:%Y-%m-%d %H:%M}"


def _row(state: RunState, progress: dict[str, Any]) -> tuple[str, ...]:
    step = describe(state, progress) if state.state == "running" else _waits_here(state.reason)
    return (
        state.id,
        state.name or "",
        ",".join(state.tags),
        state.owner or "",
        state.kind,
        state.state,
        state.metric_text,
        duration(age_seconds(state)),
        " ".join(step.split()),
    )
