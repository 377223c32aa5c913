"""`nightshift list`, `show`, `logs` and `wait`: all from the run folders, so they work without Redis."""

import json
import sys
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cluster import logs as log_files
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.follow import describe, duration, show_progress
from jobs.cli.option_types import Duration
from jobs.runs import state as run_state
from jobs.runs.record import JobRecord, read_progress, read_record
from jobs.runs.state import RunState

KINDS = ("train", "evaluate", "search", "predict", "export")


@click.command(name="list")
@click.option("--state", type=click.Choice(run_state.STATES), help="Only runs in this state.")
@click.option("--kind", type=click.Choice(KINDS), help="Only runs of this kind.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_runs(state: str | None, kind: str | None, limit: int, as_json: bool) -> None:
    r"""List runs, the newest first.

    \b
        nightshift list --state running
    """
    storage = Settings.read().storage
    wanted = (s for s in run_state.states(storage) if state in (None, s.state) and kind in (None, s.kind))
    rows = [(found, _progress(RunPaths.of(storage, found.id), found)) for found in islice(wanted, limit)]
    if as_json:
        click.echo(json.dumps([_row_json(found, progress) for found, progress in rows], indent=2))
        return
    table = Table("ID", "NAME", "KIND", "STATE", "PROGRESS", "BEST", "AGE", box=None, pad_edge=False)
    for found, progress in rows:
        table.add_row(*_row(found, progress))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@click.command()
@click.argument("run", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(run: str, as_json: bool) -> None:
    r"""Show one run whole.

    \b
        nightshift show train-20261123-203000-a1b2c3 --json
    """
    record = read_record(run_state.find(Settings.read().storage, run))
    click.echo(json.dumps(record.to_json(), indent=2) if as_json else _as_text(record))


@click.command()
@click.argument("run", metavar="ID")
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the run ends.")
@click.option("--tail", type=click.IntRange(min=1), help="Only the last so many lines.")
def logs(run: str, follows: bool, tail: int | None) -> None:
    r"""Print a run's log, from storage: it outlives worker, pod and queue.

    \b
        nightshift logs train-20261123-203000-a1b2c3 -f
    """
    paths = run_state.find(Settings.read().storage, run)
    text, position = log_files.tail(paths.log, tail)
    click.echo(text, nl=False)
    if follows:
        for added in log_files.follow(paths.log, position, lambda: run_state.read_state(paths).has_ended):
            click.echo(added, nl=False)


@click.command()
@click.argument("run", metavar="ID")
@click.option("--timeout", "timeout_seconds", type=Duration(), help="Give up after so long, with exit code 1.")
def wait(run: str, timeout_seconds: float | None) -> None:
    r"""Follow a run until it ends; exit code 0 if it succeeded, 1 otherwise.

    \b
        nightshift wait train-20261123-203000-a1b2c3 --timeout 30m
    """
    storage = Settings.read().storage
    state = show_progress(storage, run_state.find(storage, run).run_id, timeout_seconds=timeout_seconds)
    sys.exit(0 if state.state == "succeeded" else 1)


def _progress(paths: RunPaths, state: RunState) -> dict[str, Any]:
    return read_progress(paths) if state.state == "running" else {}


def _row_json(state: RunState, progress: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.to_json().items() if key != "notify"} | {"progress": progress}


def _row(state: RunState, progress: dict[str, Any]) -> tuple[str, ...]:
    metric = f"{state.metric[0]} {state.metric[1]:.4f}" if state.metric else ""
    age = (datetime.now(UTC) - datetime.fromisoformat(state.created)).total_seconds()
    step = describe(state, progress) if state.state == "running" else (state.why or "")
    return state.id, state.name or "", state.kind, state.state, step[:60], metric, duration(max(0, age))


def _as_text(record: JobRecord) -> str:
    state = record.state
    lines = [
        f"{state.id}  {describe(state, record.progress)}",
        f"name      {state.name or '-'}",
        f"created   {state.created}   started {state.started or '-'}   ended {state.ended or '-'}",
        f"attempt   {state.attempt} ({state.losses} lost)   priority {state.priority}",
        "spec      " + " ".join(f"{key}={value}" for key, value in record.spec.items() if value is not None),
    ]
    if record.metrics:
        lines.append("last      " + _pairs(record.metrics[-1]))
    if record.result:
        lines += [
            f"model     {record.result.get('checkpoint') or '-'}",
            "result    " + _pairs(record.result["metrics"]),
        ]
    lines.append("files     " + "  ".join(record.files))
    return "\n".join(lines)


def _pairs(values: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
        if isinstance(value, int | float | str)
    )
