"""`nightshift show`: read from the run folder, so it works without Redis."""

import json
from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.follow import describe
from jobs.cli.options import OptionGroup, json_option, options
from jobs.runs import state as run_state
from jobs.runs.record import JobRecord, read_record


@command(example="nightshift show train-20261123-203000-a1b2c3 --json")
@click.argument("run", metavar="ID")
@options(OptionGroup("Output", (json_option("Print the run as JSON."),)))
def show(run: str, as_json: bool) -> None:
    """Show one run: spec, state and its reason, attempts, progress, metrics, result and files.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    record = read_record(run_state.find(Settings.read().storage, run))
    click.echo(json.dumps(record.to_json(), indent=2) if as_json else _as_text(record))


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
