"""`nightshift up` and `nightshift worker`."""

import logging
import signal
import sys
import threading
from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.queue import drain_workers, list_workers
from jobs.prometheus import serve
from jobs.queue.job_worker import DRAIN_SECONDS, work
from jobs.queue.stack import start_stack
from jobs.runs.request import PRIORITIES


@click.command()
@click.option("--job-workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Runs at a time.")
def up(job_workers: int) -> None:
    r"""Run Redis and job workers in the foreground until Ctrl-C, which ends all of it.

    \b
        nightshift up --job-workers 2
    """
    settings = Settings.read()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with start_stack(settings, job_workers, output=sys.stderr) as stack:
        workers = "1 job worker" if job_workers == 1 else f"{job_workers} job workers"
        click.echo(f"Nightshift is up: {workers}, storage {settings.storage}; Ctrl-C ends it.", err=True)
        while not stop.wait(0.5):
            stack.restart_ended()
        click.echo("Stopping: runs in hand save a checkpoint and go back to the queue.", err=True)


@click.group(invoke_without_command=True)
@click.option("--queues", default=",".join(PRIORITIES), show_default=True, help="Priority classes it serves.")
@click.option("--burst", is_flag=True, help="End when the queues are empty.")
@click.option("--max-jobs", type=click.IntRange(min=1), help="End after so many runs.")
@click.option("--drain-seconds", default=DRAIN_SECONDS, show_default=True, help="Time for a checkpoint after SIGTERM.")
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Answer Prometheus at this port.")
@click.pass_context
def worker(ctx: click.Context, /, queues: str, metrics_port: int | None, **how: Any) -> None:
    r"""Work on queued runs, one at a time; SIGTERM hands the run in hand back and ends with 0.

    \b
        nightshift worker --queues high,normal
    """
    if ctx.invoked_subcommand:
        return
    priorities = [name.strip() for name in queues.split(",") if name.strip()]
    if not priorities or not set(priorities) <= set(PRIORITIES):
        raise click.BadParameter(
            f"{queues!r} has a queue that is none of {', '.join(PRIORITIES)}", param_hint="--queues"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    settings = Settings.read().with_storage_ready()
    if metrics_port:
        serve(settings, metrics_port)
    work(settings, priorities=priorities, **how)


worker.add_command(list_workers)
worker.add_command(drain_workers)
