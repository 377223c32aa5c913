"""`nightshift retry`, also called `nightshift resume`."""

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.option_groups import run_argument
from jobs.cli.submission import queued_text, queues_start_runs
from jobs.queue import actions
from jobs.runs import state as run_state
from jobs.runs.start_forecast import run_label


@command(example="nightshift retry train-20261123-203000-a1b2c3")
@run_argument("run", metavar="ID")
def retry(run: str) -> None:
    """Queue a failed, lost or cancelled run again; it continues from its last checkpoint.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    settings = Settings.read()
    state = actions.retry(settings, run_state.find(settings.storage, run))
    click.echo(state.id)
    text = queued_text(settings, state.id, starts=queues_start_runs(settings, state.priority))
    click.echo(f"{text} `nightshift logs -f {run_label(state)}` follows it.", err=True)
