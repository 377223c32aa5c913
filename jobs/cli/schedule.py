"""`nightshift schedule`: submit runs repeatedly."""

import json

import click

from cluster.settings import Settings
from jobs.cli.command import Group
from jobs.cli.main import cli
from jobs.cli.option_groups import json_option
from jobs.cli.option_values import command_line, values_of_run
from jobs.cli.submission import SpecCollector
from jobs.cli.terminal import echo
from jobs.cli.text_table import Column, output_width, table_text
from jobs.errors import JobError
from jobs.queue import schedules
from jobs.queue.connection import connect
from jobs.queue.storage_check import ready_storage
from jobs.runs.damage import shown_or
from jobs.runs.run_filter import KINDS

COLUMNS = (
    Column(title="NAME"),
    Column(title="CRON"),
    Column(title="NEXT"),
    Column(title="LAST RUN"),
)
REPEATABLE = tuple(kind for kind in KINDS if kind != "export")


@click.group(cls=Group)
def schedule() -> None:
    """Add, list and remove cron schedules. Job workers submit the scheduled runs."""


@schedule.command(
    context_settings={"ignore_unknown_options": True},
    example='nightshift schedule add nightly "0 20 * * 1-5" train shards/chest --epochs 5',
)
@click.argument("name")
@click.argument("cron")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def add(ctx: click.Context, name: str, cron: str, command: tuple[str, ...]) -> None:
    """Submit a run of COMMAND on a cron schedule.

    NAME is the name of the schedule. CRON has five fields: minute, hour, day of month, month, day of week. COMMAND is
    train, evaluate, search or predict, with its arguments and options.
    """
    schedules.refuse_wrong_cron(cron)  # without quotes, its other fields would be COMMAND
    kind, *arguments = command
    if kind not in REPEATABLE:
        raise click.UsageError(f"{kind!r} cannot be scheduled; use one of {', '.join(REPEATABLE)}")
    spec, request = SpecCollector.invoke(_submit_command(kind), arguments, ctx)
    settings = Settings.read()
    ready_storage(settings, connect(settings))
    kept = schedules.add(settings, name, cron, spec, request)
    click.echo(f"{name} is due next at {kept.due_at():%Y-%m-%d %H:%M %Z}", err=True)


@schedule.command(name="list", example="nightshift schedule list")
@json_option("Print the schedules as JSON.")
def list_schedules(as_json: bool) -> None:
    """List the schedules: what each runs, when next, and its last run."""
    settings = Settings.read()
    found = schedules.schedules(settings)
    if as_json:
        shown = [
            {**each.model_dump(mode="json"), "due": each.due_at().isoformat()}
            | {"request": each.request.model_dump(mode="json") | {"notify": each.request.notify and "set"}}
            for each in found
        ]
        click.echo(json.dumps(shown, indent=2))
        return
    if not found:
        click.echo("no schedules; `nightshift schedule add NAME CRON COMMAND` adds one", err=True)
        return
    rows = [(each.name, each.cron, f"{each.due_at():%Y-%m-%d %H:%M %Z}", each.last_run or "-") for each in found]
    heading, *lines = table_text(COLUMNS, rows, output_width()).splitlines()
    click.echo(heading)
    for line, each in zip(lines, found, strict=True):
        echo(f"{line}\n  {_command_of(settings, each)}")


def _command_of(settings: Settings, planned: schedules.Schedule) -> str:
    """Return the command that a schedule runs, or why it is not known."""
    faults, request = list[str](), planned.request.model_dump(mode="json")

    def words() -> str:
        spec = schedules.spec_of(settings, planned.name)
        command = _submit_command(str(spec["kind"]))
        return command_line(command, values_of_run(command, spec, request, planned.name))

    try:
        return shown_or("", "spec.json", faults, words) or faults[0]
    except JobError as error:  # an option of another version
        return str(error)


@schedule.command(example="nightshift schedule remove nightly")
@click.argument("name")
def remove(name: str) -> None:
    """Remove a schedule; runs that it has submitted are kept."""
    schedules.remove(Settings.read(), name)
    click.echo(f"{name} is removed", err=True)


def _submit_command(kind: str) -> click.Command:
    found = cli.get_command(click.Context(cli), kind)
    if found is None:
        raise KeyError(kind)
    return found
