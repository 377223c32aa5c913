"""`nightshift queue` and `nightshift worker list|drain`: the state of the queues and of those who serve them."""

import json
from typing import Any

import click
from redis import Redis
from rich.console import Console
from rich.table import Table

from cluster.settings import Settings
from jobs.queue import queues
from jobs.queue.connection import connect
from jobs.queue.worker_list import WorkerRecord, drain, live_workers
from jobs.runs.request import PRIORITIES


@click.group()
def queue() -> None:
    """Show the queues; pause and resume them."""


@queue.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    r"""Show what waits in each queue, and who serves it.

    \b
        nightshift queue show --json
    """
    with connect(Settings.read()) as connection:
        found = overview(connection)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo("paused" if found["paused"] else "open")
    for line in found["queues"]:
        click.echo(f"{line['priority']:<7} {line['waiting']:>5} waiting  {line['workers']:>3} job workers")
    if found["refused"]:
        click.echo(f"refused {len(found['refused'])} foreign entries, the last: {found['refused'][0]}")


@queue.command()
def pause() -> None:
    """Let no job worker take another run; what runs goes on."""
    with connect(Settings.read()) as connection:
        queues.pause(connection)
    click.echo("The queues are paused; `nightshift queue resume` opens them.", err=True)


@queue.command()
def resume() -> None:
    """Let job workers take runs again."""
    with connect(Settings.read()) as connection:
        queues.unpause(connection)
    click.echo("The queues are open.", err=True)


@click.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_workers(as_json: bool) -> None:
    r"""List the job workers that beat.

    \b
        nightshift worker list
    """
    with connect(Settings.read()) as connection:
        found = live_workers(connection)
    if as_json:
        click.echo(json.dumps([vars(worker) for worker in found], indent=2))
        return
    table = Table("NAME", "STATE", "RUN", "QUEUES", "SINCE", "LAST BEAT", box=None, pad_edge=False)
    for worker in found:
        table.add_row(*_row(worker))
    Console(width=200).print(table)


@click.command(name="drain")
@click.argument("name", required=False)
@click.option("--all", "everyone", is_flag=True, help="Every job worker.")
def drain_workers(name: str | None, everyone: bool) -> None:
    r"""Have a job worker hand its run back after a checkpoint and end.

    \b
        nightshift worker drain gpu-node-3-4711-a1b2c3
    """
    if everyone == bool(name):
        raise click.UsageError("give the NAME of a job worker, or --all")
    with connect(Settings.read()) as connection:
        for drained in drain(connection, name):
            click.echo(drained)


def overview(connection: Redis) -> dict[str, Any]:
    """Return what `queue show --json` prints."""
    serving = [worker.queues for worker in live_workers(connection)]
    return {
        "paused": queues.is_paused(connection),
        "queues": [
            {
                "priority": priority,
                "waiting": len(queues.waiting(connection, priority)),
                "next": queues.waiting(connection, priority)[:1],
                "workers": sum(priority in served for served in serving),
            }
            for priority in PRIORITIES
        ],
        "refused": queues.refused(connection),
    }


def _row(worker: WorkerRecord) -> tuple[str, ...]:
    return worker.name, worker.state, worker.run or "", ",".join(worker.queues), worker.since or "", worker.beat or ""
