"""`nightshift retry`, also called `nightshift resume`."""

import sys

import click

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.several import act_on_each, find_all, runs_argument
from jobs.cli.submission import queued_text, queues_start_runs
from jobs.queue import actions
from jobs.runs.start_forecast import run_label


@command(example="nightshift retry train-20261123-203000-a1b2c3")
@runs_argument
def retry(runs: tuple[str, ...]) -> None:
    """Queue failed, lost or cancelled runs again; they continue from their last checkpoints.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    settings = Settings.read()

    def queue_again(paths: RunPaths) -> None:
        state = actions.retry(settings, paths)
        click.echo(state.id)
        text = queued_text(settings, state.id, starts=queues_start_runs(settings, state.priority))
        click.echo(f"{text} `nightshift logs -f {run_label(state)}` follows it.", err=True)

    sys.exit(act_on_each(find_all(settings.storage, runs), queue_again))
