"""`nightshift up`."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import click
from click.core import ParameterSource

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.option_groups import COLD
from jobs.cli.ui import PORT
from jobs.errors import InvalidOption, StackError
from jobs.queue.stack import WORKER, log_file, start_child, start_stack

MAX_DEATHS = 3  # of the page; another start would not help
PAGE = (sys.executable, "-P", "-m", "jobs", "ui")  # -P: never import a user's own jobs.py


@command(example="nightshift up --job-workers 2\nnightshift up --ui")
@click.option(
    "--job-workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    metavar="N",
    help="Number of job workers. Each one executes one run at a time.",
)
@click.option("--ui", "with_page", is_flag=True, help="Also serve the page, as `nightshift ui` does.")
@click.option("--ui-port", default=PORT, show_default=True, type=click.IntRange(0, 65535), metavar="PORT",
              help="TCP port of the page; 0 chooses a free one.")  # fmt: skip
@COLD
def up(job_workers: int, *, with_page: bool, ui_port: int, cold: bool) -> None:
    """Run Redis and job workers in the foreground until Ctrl-C.

    Started with & from a terminal, the job workers write their output to STORAGE/logs/worker-N.log instead of the
    terminal.

    On Ctrl-C, running runs save a checkpoint and return to the queue, then all processes stop. Ray is started for each
    run, not by this command. Each job worker keeps a process that has imported torch and Ray, in 1 GB of memory, and
    starts its runs as forks of it, without the seconds that these imports take.
    """
    if not with_page and click.get_current_context().get_parameter_source("ui_port") != ParameterSource.DEFAULT:
        raise InvalidOption("--ui-port is the port of the page, which is not served; add --ui")
    settings = Settings.read()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    output = None if is_in_background() else sys.stderr
    if with_page:
        refuse_taken(ui_port)
    with (
        start_stack(
            settings, job_workers, output=output, worker_command=(*WORKER, "--cold") if cold else WORKER
        ) as stack,
        PageProcess(stack.settings, ui_port) if with_page else contextlib.nullcontext() as page,
    ):
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
            if page is not None:
                page.restart_ended()
        click.echo("Stopping: running runs save a checkpoint and go back to the queue.", err=True)


def refuse_taken(port: int) -> None:
    """Refuse a port of the page that another process has.

    Raises:
        StackError: It has.
    """
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise StackError(
            f"port {port} cannot be opened for the page ({os.strerror(error.errno or 0)}); choose another --ui-port"
        ) from error


class PageProcess:
    """The page in a process of its own, which prints its address: job workers go on when it ends."""

    def __init__(self, settings: Settings, port: int) -> None:
        self.settings, self.port, self.deaths = settings, port, 0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PageProcess":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def restart_ended(self) -> None:
        """Start the page again if it has ended by itself, `MAX_DEATHS` times; call it repeatedly."""
        if self.process is None or self.process.poll() is None:
            return
        self.deaths += 1
        if self.deaths < MAX_DEATHS:
            self._start()
            return
        click.echo(
            f"The page ended {self.deaths} times, last with exit code {self.process.returncode}; job workers go on; "
            "`nightshift ui` serves the page again.",
            err=True,
        )
        self.process = None

    def _start(self) -> None:
        self.process = start_child((*PAGE, "--port", str(self.port)), self.settings)


def is_in_background() -> bool:
    """Whether a shell started this command with `&`: other commands then use the terminal, which no log may disturb."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) != os.getpgrp()
    except OSError:  # not this process's terminal
        return False
