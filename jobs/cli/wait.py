"""`nightshift wait`."""

import sys

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.follow import show_progress
from jobs.cli.option_types import Duration
from jobs.cli.options import OptionGroup, options
from jobs.runs import state as run_state

TIMEOUT = click.option(
    "--timeout",
    "timeout_seconds",
    type=Duration(),
    help="Stop waiting after this time, such as 30m, with exit code 1; the run goes on.  [default: no limit]",
)


@command(example="nightshift wait train-20261123-203000-a1b2c3 --timeout 30m")
@click.argument("run", metavar="ID")
@options(OptionGroup("Output", (TIMEOUT,)))
def wait(run: str, timeout_seconds: float | None) -> None:
    """Follow a run until it ends; the exit code is 0 if it succeeded, else 1.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    storage = Settings.read().storage
    state = show_progress(storage, run_state.find(storage, run).run_id, timeout_seconds=timeout_seconds)
    sys.exit(0 if state.state == "succeeded" else 1)
