"""`nightshift delete`."""

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.option_groups import run_argument
from jobs.errors import Refused
from jobs.queue import actions
from jobs.runs import state as run_state
from jobs.runs.promotions import refuse_in_use


@command(example="nightshift delete train-20261123-203000-a1b2c3 --yes")
@run_argument("run", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--force",
    is_flag=True,
    help="Also delete a run whose state.json is missing or damaged, or whose model is in use under a name.",
)
def delete(run: str, yes: bool, force: bool) -> None:
    """Delete a run that has ended, and its files. Asks for confirmation.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    settings = Settings.read()
    paths = run_state.find(settings.storage, run)
    if not (force and run_state.is_damaged(paths)):
        actions.require_ended(run_state.read_state(paths))
    if not force:
        refuse_in_use(paths)
    if not yes and not click.confirm(f"Delete {paths.run_id} and its files?", err=True):
        raise Refused("nothing was deleted; answer y, or give --yes")
    actions.delete(paths, force=force)
    click.echo(f"{paths.run_id} is deleted", err=True)
