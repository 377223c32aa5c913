"""`nightshift queue`: show, pause and resume the queues."""

import json

import click

from cluster.settings import Settings
from jobs.cli.command import Group
from jobs.cli.option_groups import json_option
from jobs.cli.terminal import echo
from jobs.queue import queues
from jobs.queue.connection import connect
from jobs.queue.overview import queue_faults, queue_overview


@click.group(cls=Group)
def queue() -> None:
    """Show, pause and resume the job queues."""


@queue.command(example="nightshift queue show --json")
@json_option("Print the queues as JSON.")
def show(as_json: bool) -> None:
    """Show the waiting runs and job workers of each queue."""
    with connect(Settings.read()) as connection:
        found = queue_overview(connection)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo("paused" if found["paused"] else "open")
    for line in found["queues"]:
        workers = f"{line['workers']:>3} {'job worker' if line['workers'] == 1 else 'job workers'}"
        click.echo(f"{line['priority']:<7} {line['waiting']:>5} waiting  {workers}")
    for fault in queue_faults(found):
        echo(fault)


@queue.command(example="nightshift queue pause")
def pause() -> None:
    """Stop job workers from starting queued runs; running runs continue."""
    with connect(Settings.read()) as connection:
        queues.pause(connection)
    click.echo("The queues are paused; `nightshift queue resume` opens them.", err=True)


@queue.command(example="nightshift queue resume")
def resume() -> None:
    """Let job workers start queued runs again."""
    with connect(Settings.read()) as connection:
        queues.unpause(connection)
    click.echo("The queues are open.", err=True)
