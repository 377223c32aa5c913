"""`nightshift schedule`: submit runs repeatedly."""

import json

import click

from cluster.settings import Settings
from jobs.cli.command import Group
from jobs.cli.main import cli
from jobs.cli.option_groups import json_option
from jobs.cli.submission import SpecCollector
from jobs.cli.terminal import echo
from jobs.queue import schedules
from jobs.queue.connection import connect
from jobs.queue.storage_check import ready_storage

REPEATABLE = ("train", "evaluate", "search", "predict")


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
    kind, *arguments = command
    if kind not in REPEATABLE:
        raise click.UsageError(f"{kind!r} cannot be scheduled; use one of {', '.join(REPEATABLE)}")
    submit_command = cli.get_command(ctx, kind)
    assert submit_command is not None  # noqa: S101 -- REPEATABLE has only commands of `cli`
    spec, request = SpecCollector.invoke(submit_command, arguments, ctx)
    settings = Settings.read()
    ready_storage(settings, connect(settings))
    kept = schedules.add(settings, name, cron, spec, request)
    click.echo(f"{name} is due next at {kept.due_at():%Y-%m-%d %H:%M %Z}", err=True)


@schedule.command(name="list", example="nightshift schedule list")
@json_option("Print the schedules as JSON.")
def list_schedules(as_json: bool) -> None:
    """List the schedules, each with its next and last run."""
    found = schedules.schedules(Settings.read())
    if as_json:
        shown = [
            {**each.model_dump(mode="json"), "due": each.due_at().isoformat()}
            | {"request": each.request.model_dump(mode="json") | {"notify": each.request.notify and "set"}}
            for each in found
        ]
        click.echo(json.dumps(shown, indent=2))
        return
    for each in found:
        echo(f"{each.name}  {each.cron}  due {each.due_at():%Y-%m-%d %H:%M}  last {each.last_run or '-'}")


@schedule.command(example="nightshift schedule remove nightly")
@click.argument("name")
def remove(name: str) -> None:
    """Remove a schedule; runs that it has submitted are kept."""
    schedules.remove(Settings.read(), name)
    click.echo(f"{name} is removed", err=True)
