"""`nightshift schedule`: runs that repeat."""

import json

import click

from cluster.settings import Settings
from jobs.cli.main import cli
from jobs.cli.train import Captured
from jobs.queue import schedules

REPEATABLE = ("train", "evaluate", "search", "predict")


@click.group()
def schedule() -> None:
    """Add, list and remove runs that repeat; job workers submit them."""


@schedule.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("cron")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def add(ctx: click.Context, name: str, cron: str, command: tuple[str, ...]) -> None:
    r"""Submit COMMAND at each moment of the CRON line: minute hour day month weekday.

    \b
        nightshift schedule add nightly "0 20 * * 1-5" train shards/chest --epochs 5
    """
    kind, *arguments = command
    if kind not in REPEATABLE:
        raise click.UsageError(f"{kind!r} cannot repeat; give one of {', '.join(REPEATABLE)}")
    wanted = cli.get_command(ctx, kind)
    assert wanted is not None  # noqa: S101, it is one of ours
    captured = Captured()
    with wanted.make_context(kind, arguments, parent=ctx, obj=captured) as inner:
        wanted.invoke(inner)
    if captured.spec is None or captured.wanted is None:
        raise click.UsageError(f"{kind} submits nothing with these options")
    kept = schedules.add(Settings.read(), name, cron, captured.spec, captured.wanted)
    click.echo(f"{name} is due next at {kept.due_at():%Y-%m-%d %H:%M %Z}", err=True)


@schedule.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_schedules(as_json: bool) -> None:
    """List the schedules."""
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
        click.echo(f"{each.name}  {each.cron}  due {each.due_at():%Y-%m-%d %H:%M}  last {each.last_run or '-'}")


@schedule.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget a schedule; its runs stay."""
    schedules.remove(Settings.read(), name)
    click.echo(f"{name} is removed", err=True)
