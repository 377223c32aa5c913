"""`nightshift cancel`, `retry`, `resume`, `delete` and `reconcile`: what people do to runs."""

import json
import time

import click
import redis

from cluster.settings import Settings
from jobs.errors import Refused
from jobs.queue import actions, reconciler
from jobs.queue.connection import connect
from jobs.queue.reconciler import ReconcilerMemory, Repair
from jobs.queue.reconciler import reconcile as put_right
from jobs.queue.schedules import submit_due
from jobs.queue.webhook_sender import deliver
from jobs.runs import state as run_state

SLACK_SECONDS = 2.0  # that the keeper's last look may come late


@click.command()
@click.argument("run", metavar="ID")
@click.option("--now", is_flag=True, help="Kill it instead of waiting for a checkpoint.")
def cancel(run: str, now: bool) -> None:
    r"""Stop a run after a checkpoint, or at once; return when nothing of it is left.

    \b
        nightshift cancel train-20261123-203000-a1b2c3
    """
    settings = Settings.read()
    state = actions.cancel(settings, run_state.find(settings.storage, run), at_once=now)
    click.echo(f"{state.id}: {state.state}", err=True)


@click.command()
@click.argument("run", metavar="ID")
def retry(run: str) -> None:
    r"""Queue a failed, lost or cancelled run again; it goes on from its last checkpoint.

    \b
        nightshift retry train-20261123-203000-a1b2c3
    """
    settings = Settings.read()
    state = actions.retry(settings, run_state.find(settings.storage, run))
    click.echo(state.id)
    click.echo(f"Queued again. `nightshift logs -f {state.id}` follows it.", err=True)


resume = retry


@click.command()
@click.argument("run", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(run: str, yes: bool) -> None:
    r"""Delete a run that has ended and its files, after asking.

    \b
        nightshift delete train-20261123-203000-a1b2c3 --yes
    """
    settings = Settings.read()
    paths = run_state.find(settings.storage, run)
    if not yes and not click.confirm(f"Delete {paths.run_id} and its files?", err=True):
        raise Refused("nothing was deleted; answer y, or give --yes")
    actions.delete(paths)
    click.echo(f"{paths.run_id} is deleted", err=True)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reconcile(as_json: bool) -> None:
    r"""Do what job workers do all the time: queue what is owed or due, end what is dead, tell of what has ended.

    \b
        nightshift reconcile
    """
    settings = Settings.read()
    connection, memory = connect(settings), ReconcilerMemory()
    repairs = put_right(settings, connection, memory, every_run=True)
    submit_due(settings)
    deliver(settings)
    if later := _watch(settings, connection, memory):
        deliver(settings)
    _print([*repairs, *later], as_json)


def _watch(settings: Settings, connection: redis.Redis, memory: ReconcilerMemory) -> list[Repair]:
    """Return what is put right of runs that do not move for as long as life may take to show; none if all move."""
    repairs: list[Repair] = []
    looked, seconds = time.monotonic(), max(settings.lease_seconds, reconciler.STUCK_SECONDS) + SLACK_SECONDS
    still = memory.unchanged_since(looked)
    if still:
        runs = "1 run" if len(still) == 1 else f"{len(still)} runs"
        click.echo(f"watching {runs} for signs of life, {seconds:.0f} s at most", err=True)
    while memory.unchanged_since(looked) and time.monotonic() < looked + seconds:
        time.sleep(min(1.0, settings.lease_seconds / 4))
        repairs += put_right(settings, connection, memory)
    return repairs


def _print(repairs: list[Repair], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([{"id": repair.run_id, "what": repair.what} for repair in repairs], indent=2))
        return
    for repair in repairs:
        click.echo(f"{repair.run_id}: {repair.what}")
    if not repairs:
        click.echo("nothing was amiss", err=True)
