"""`nightshift wait`."""

from functools import partial

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.follow import show_progress
from jobs.cli.option_groups import OptionGroup, json_option, options, run_argument
from jobs.cli.option_types import Duration
from jobs.cli.outcome import follow_to_end
from jobs.cli.terminal import waits_for_storage
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
    storage = Settings.read().storage
    run_id = waits_for_storage().call(lambda: run_state.find(storage, run)).run_id
    follow_to_end(storage, run_id, partial(show_progress, timeout_seconds=timeout_seconds), as_json=as_json)
