"""`nightshift reconcile`: what the job workers' reconciler does, once and by hand."""

import json
import time

import click
import redis

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.option_groups import json_option
from jobs.errors import QueueUnreachable
from jobs.queue import reconciler
from jobs.queue.connection import connect
from jobs.queue.mlflow_sender import send_once
from jobs.queue.reconciler import ReconcilerMemory, Repair
from jobs.queue.schedules import submit_due
from jobs.queue.storage_check import refuse_other_storage
from jobs.queue.webhook_sender import deliver

SLACK_SECONDS = 2.0  # how late the reconciler's last look may come


@command(example="nightshift reconcile")
@json_option("Print the repairs as JSON.")
def reconcile(as_json: bool) -> None:
    """Run the reconciler once. Job workers run it continuously.

    The reconciler queues runs that are missing from the queue, submits due schedules, ends attempts without a
    heartbeat, sends pending webhooks, and sends runs to MLflow.
    """
    settings, repairs = Settings.read(), list[Repair]()
    try:
        _repair(settings, repairs)
    except redis.RedisError as error:
        if repairs:
            _print(repairs, as_json)
        raise QueueUnreachable(
            f"the connection to Redis was lost ({error}); what was repaired is kept: start Redis, then repeat the "
            "command for the rest"
        ) from error
    send_once(settings)
    _print(repairs, as_json)


def _repair(settings: Settings, repairs: list[Repair]) -> None:
    """Run the reconciler until every run has moved or was repaired, send the webhooks and add the repairs to `repairs`.

    Raises:
        redis.RedisError: Redis went away meanwhile.
    """
    connection, memory = connect(settings), ReconcilerMemory()
    refuse_other_storage(settings, connection)
    repairs += reconciler.reconcile(settings, connection, memory, every_run=True)
    submit_due(settings)
    deliver(settings)
    before = len(repairs)
    _watch_heartbeats(settings, connection, memory, repairs)
    if len(repairs) > before:
        deliver(settings)


def _watch_heartbeats(
    settings: Settings, connection: redis.Redis, memory: ReconcilerMemory, repairs: list[Repair]
) -> None:
    """Watch runs without progress until each has shown a heartbeat or was repaired; add the repairs to `repairs`."""
    start, seconds = time.monotonic(), max(settings.lease_seconds, reconciler.STUCK_SECONDS) + SLACK_SECONDS
    unmoved = memory.unchanged_since(start)
    if unmoved:
        runs = "1 run" if len(unmoved) == 1 else f"{len(unmoved)} runs"
        click.echo(f"waiting for a heartbeat of {runs}, {seconds:.0f} s at most", err=True)
    while memory.unchanged_since(start) and time.monotonic() < start + seconds:
        time.sleep(min(1.0, settings.lease_seconds / 4))
        repairs += reconciler.reconcile(settings, connection, memory)


def _print(repairs: list[Repair], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([{"id": repair.run_id, "what": repair.what} for repair in repairs], indent=2))
        return
    for repair in repairs:
        click.echo(f"{repair.run_id}: {repair.what}")
    if not repairs:
        click.echo("nothing to repair", err=True)
