"""`nightshift up`."""

import os
import signal
import sys
import threading

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.queue.stack import log_file, start_stack


@command(example="nightshift up --job-workers 2")
@click.option(
    "--job-workers", default=1, show_default=True, type=click.IntRange(1, 64), metavar="N",
    help="Number of job workers. Each one executes one run at a time.",
)  # fmt: skip
def up(job_workers: int) -> None:
    """Run Redis and job workers in the foreground until Ctrl-C.

    Started with & from a terminal, the job workers write their output to STORAGE/logs/worker-N.log instead of the
    terminal.

    On Ctrl-C, running runs save a checkpoint and return to the queue, then all processes stop. Ray is started for each
    run, not by this command.
    """
    settings = Settings.read()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    output = None if is_in_background() else sys.stderr
    with start_stack(settings, job_workers, output=output) as stack:
        workers = "1 job worker" if job_workers == 1 else f"{job_workers} job workers"
        ends = (
            "Ctrl-C stops it" if output else f"`kill -INT {os.getpid()}` stops it; log: {log_file(settings.storage, 1)}"
        )
        click.echo(f"Nightshift is up: {workers}, storage {settings.storage}; {ends}.", err=True)
        if stack.server and not stack.server.started_here and stack.server.owner:
            click.echo(
                f"Process {stack.server.owner}, another `nightshift up` or `demo`, serves the Redis of this storage; "
                f"this command adds {workers}, and serves Redis when that process ends.",
                err=True,
            )
        while not stop.wait(0.5):
            stack.restart_ended()
        click.echo("Stopping: running runs save a checkpoint and go back to the queue.", err=True)


def is_in_background() -> bool:
    """Whether a shell started this command with `&`: other commands then use the terminal, which no log may disturb."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) != os.getpgrp()
    except OSError:  # not this process's terminal
        return False
