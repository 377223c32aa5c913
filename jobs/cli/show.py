"""`nightshift show`: read from the run folder, so it works without Redis."""

import json
import sys
import textwrap
from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.follow import describe
from jobs.cli.options import OptionGroup, json_option, options, run_argument
from jobs.cli.outcome import CURES, decision_rows
from jobs.cli.terminal import terminal_text
from jobs.cli.text_table import output_width
from jobs.errors import Refused
from jobs.runs import state as run_state
from jobs.runs.record import JobRecord, model_mismatch, read_record

LABEL = 10  # characters of the first column


@command(example="nightshift show train-20261123-203000-a1b2c3 --json")
@run_argument("run", metavar="ID")
@options(OptionGroup("Output", (json_option("Print the run as JSON."),)))
def show(run: str, as_json: bool) -> None:
    """Show the spec, state, attempts, progress, metrics, result and files of a run.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    paths = run_state.find(Settings.read().storage, run)
    record = read_record(paths)
    click.echo(json.dumps(record.to_json(), indent=2) if as_json else terminal_text(_as_text(record)))
    if record.damage:
        click.echo(terminal_text(record.damage), err=True)
    if mismatch := model_mismatch(paths):
        raise Refused(mismatch)


def _as_text(record: JobRecord) -> str:
    state = record.state
    rows = [
        ("state", describe(state, record.progress)),
        ("name", state.name or "-"),
        ("created", f"{state.created}   started {state.started or '-'}   ended {state.ended or '-'}"),
        ("attempt", f"{state.attempt} ({state.losses} lost)   priority {state.priority}"),
        ("spec", " ".join(f"{key}={value}" for key, value in record.spec.items() if value is not None)),
    ]
    if record.metrics:
        rows.append(("last", _pairs(record.metrics[-1])))
    if record.result:
        rows += [("model", str(record.result.get("checkpoint") or "-")), ("result", _pairs(record.result["metrics"]))]
        rows += decision_rows(record)
    rows.append(("files", "  ".join(record.files)))
    if state.state in CURES:
        rows.append(("next", CURES[state.state].format(id=state.id)))
    width = max(output_width() or sys.maxsize, LABEL + len(state.id))
    return "\n".join([state.id, *(_wrapped(label, text, width) for label, text in rows)])


def _wrapped(label: str, text: str, width: int) -> str:
    """Return a row whose long text wraps inside its column; long words, such as paths, are not broken."""
    return textwrap.fill(
        text,
        width,
        initial_indent=f"{label:<{LABEL}}",
        subsequent_indent=" " * LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _pairs(values: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
        if isinstance(value, int | float | str)
    )
