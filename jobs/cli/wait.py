"""`nightshift wait`."""

import sys
import time
from functools import partial

import click

from cluster.errors import StorageError
from cluster.files import is_unanswered
from cluster.settings import Settings
from cluster.storage_patience import fault_text
from jobs.cli.command import command
from jobs.cli.follow import show_progress
from jobs.cli.option_groups import OptionGroup, json_option, options, run_argument
from jobs.cli.option_types import Duration
from jobs.cli.outcome import follow_to_end
from jobs.cli.terminal import echo, waits_for_storage
from jobs.runs import state as run_state

TIMEOUT = click.option(
    "--timeout",
    "timeout_seconds",
    type=Duration(),
    help="Stop waiting after this time, such as 30m, with exit code 1; the run continues.  [default: no limit]",
)


@command(example="nightshift wait train-20261123-203000-a1b2c3 --timeout 30m")
@run_argument("run", metavar="ID")
@options(OptionGroup("Output", (TIMEOUT, json_option("Print the run as JSON when it ends."))))
def wait(run: str, timeout_seconds: float | None, as_json: bool) -> None:
    """Follow a run until it ends; the exit code is 0 if it succeeds, else 1.

    Ctrl-C stops waiting; the run continues. ID is a run id, a unique prefix of one, or a run's name.
    """
    until, storage = time.monotonic() + (timeout_seconds or float("inf")), Settings.read().storage
    try:
        run_id = waits_for_storage().call(lambda: run_state.find_to_follow(storage, run), until=until).run_id
        follow_to_end(storage, run_id, partial(show_progress, until=until), as_json=as_json, until=until)
    except (OSError, StorageError) as error:
        if time.monotonic() < until or not is_unanswered(error):
            raise
        why = f"the storage does not answer ({fault_text(error)})"
        echo(f"stopped waiting, as {why}; wait again: nightshift wait {run}", err=True)
        sys.exit(1)
