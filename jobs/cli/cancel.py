"""`nightshift cancel`."""

import sys

import click

from cluster.settings import Settings
from jobs.cli.command import INTERRUPTED, command
from jobs.cli.option_groups import run_argument
from jobs.queue import actions
from jobs.runs import state as run_state


@command(example="nightshift cancel train-20261123-203000-a1b2c3")
@run_argument("run", metavar="ID")
@click.option("--now", is_flag=True, help="Kill the run without waiting for its next checkpoint.")
def cancel(run: str, now: bool) -> None:
    """Stop a run after its next checkpoint, and wait until its processes have exited.

    ID is a run id, a unique prefix of one, or a run's name. `nightshift retry ID` continues a cancelled run.
    """
    settings = Settings.read()
    paths = run_state.find(settings.storage, run)
    try:
        state = actions.cancel(settings, paths, at_once=now)
    except KeyboardInterrupt:
        click.echo(f"\nstopped waiting; the run still stops: nightshift wait {paths.run_id}", err=True)
        sys.exit(INTERRUPTED)
    click.echo(f"{state.id}: {state.state}", err=True)
