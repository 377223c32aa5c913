"""`nightshift logs`: read from the run folder, so the log outlives worker, pod and queue."""

import sys

import click

from cluster import logs as log_files
from cluster.settings import Settings
from jobs.cli.command import INTERRUPTED, command
from jobs.cli.option_groups import OptionGroup, options, run_argument
from jobs.cli.terminal import terminal_text, waits_for_storage
from jobs.runs import state as run_state

LINES = OptionGroup(
    "Output",
    (
        click.option("-f", "--follow", "follows", is_flag=True, help="Keep printing new lines until the run ends."),
        click.option(
            "--tail", type=click.IntRange(min=1), metavar="N", help="Print only the last N lines.  [default: all]"
        ),
    ),
)


@command(example="nightshift logs -f train-20261123-203000-a1b2c3")
@run_argument("run", metavar="ID")
@options(LINES)
def logs(run: str, follows: bool, tail: int | None) -> None:
    """Print the log of all attempts of a run.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    storage, patience, until = Settings.read().storage, waits_for_storage(), float("inf") if follows else 0.0
    paths = patience.call(lambda: run_state.find_to_follow(storage, run), until=until)
    text, position = patience.call(lambda: log_files.tail(paths.log, tail), until=until)
    click.echo(terminal_text(text), nl=False)
    if follows:
        try:
            for added in log_files.follow(paths.log, position, lambda: run_state.read_state(paths).has_ended, patience):
                click.echo(terminal_text(added), nl=False)
        except KeyboardInterrupt:
            click.echo(f"\nstopped watching; the run goes on: nightshift logs -f {paths.run_id}", err=True)
            sys.exit(INTERRUPTED)
