"""`nightshift worker`: run one job worker; list and drain those that run."""

import json
from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.command import Group
from jobs.cli.option_groups import COLD, json_option
from jobs.cli.terminal import echo, log_to_terminal
from jobs.cli.text_table import Column, output_width, table_text
from jobs.prometheus import serve
from jobs.queue.connection import connect
from jobs.queue.job_worker import DRAIN_SECONDS, work
from jobs.queue.worker_list import WorkerRecord, find_workers
from jobs.queue.worker_list import drain as drain_workers
from jobs.runs.progress_text import ago
from jobs.runs.request import PRIORITIES

COLUMNS = (
    Column(title="NAME"),
    Column(title="STATE"),
    Column(title="RUN"),
    Column(title="QUEUES", importance=2),
    Column(title="STARTED", importance=1),
    Column(title="LAST HEARTBEAT", importance=3),
)


@click.group(cls=Group, invoke_without_command=True, example="nightshift worker --queues high,normal")
@click.option(
    "--queues",
    default=",".join(PRIORITIES),
    show_default=True,
    metavar="P,P,...",
    help="Comma-separated queues to take runs from: high, normal, low.",
)
@click.option("--burst", is_flag=True, help="Exit when the queues are empty.")
@click.option("--max-jobs", type=click.IntRange(min=1), metavar="N", help="Exit after N runs.  [default: no limit]")
@click.option(
    "--drain-seconds",
    default=DRAIN_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Time limit for saving a checkpoint after SIGTERM, in seconds.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve Prometheus metrics on this port.  [default: off]",
)
@COLD
@click.pass_context
def worker(ctx: click.Context, /, queues: str, metrics_port: int | None, **limits: Any) -> None:
    """Run a job worker, which executes queued runs one at a time.

    On SIGTERM, the job worker saves a checkpoint, returns its run to the queue, and exits with code 0.
    """
    if ctx.invoked_subcommand:
        return
    priorities = [name.strip() for name in queues.split(",") if name.strip()]
    if not priorities or not set(priorities) <= set(PRIORITIES):
        raise click.BadParameter(
            f"{queues!r} has a queue that is none of {', '.join(PRIORITIES)}", param_hint="--queues"
        )
    log_to_terminal()
    settings = Settings.read()
    if settings.redis_url is None:
        settings.with_storage_ready()  # the embedded Redis is in it
    if metrics_port:
        serve(settings, metrics_port)
    work(settings, priorities=priorities, **limits)


@worker.command(name="list", example="nightshift worker list")
@json_option("Print the job workers as JSON.")
def list_workers(as_json: bool) -> None:
    """List the live job workers.

    A job worker is silent if its heartbeats have stopped: it was killed, or its machine cannot be reached. It is not
    listed any more two minutes after the last one.
    """
    with connect(Settings.read()) as connection:
        found, skipped = find_workers(connection)
    if skipped:
        click.echo(f"skipped {skipped} entries of RQ's set of workers that are not Nightshift's", err=True)
    if as_json:
        click.echo(json.dumps([vars(each) for each in found], indent=2))
        return
    if not found:
        click.echo("no job worker is running; `nightshift up` or `nightshift worker` starts one", err=True)
        return
    click.echo(table_text(COLUMNS, [_row(each) for each in found], output_width()))


@worker.command(example="nightshift worker drain gpu-node-3-4711-a1b2c3")
@click.argument("name", required=False)
@click.option("--all", "everyone", is_flag=True, help="Drain every job worker.")
def drain(name: str | None, everyone: bool) -> None:
    """Stop a job worker after a checkpoint.

    The job worker saves a checkpoint, returns its run to the queue, and exits.
    """
    if everyone == bool(name):
        raise click.UsageError("give the NAME of a job worker, or --all")
    with connect(Settings.read()) as connection:
        for drained in drain_workers(connection, name):
            echo(drained)


def _row(worker: WorkerRecord) -> tuple[str, ...]:
    return worker.name, worker.state, worker.run or "", ",".join(worker.queues), ago(worker.since), ago(worker.beat)
