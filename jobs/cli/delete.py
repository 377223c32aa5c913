"""`nightshift delete`."""

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.several import find_all, runs_argument
from jobs.errors import Refused
from jobs.queue import actions
from jobs.runs import state as run_state
from jobs.runs.promotions import refuse_in_use


@command(example="nightshift delete train-20261123-203000-a1b2c3 --yes")
@runs_argument
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--force",
    is_flag=True,
    help="Also delete runs whose state.json is missing or damaged, or whose model is in use under a name.",
)
def delete(runs: tuple[str, ...], yes: bool, force: bool) -> None:
    """Delete runs that have ended, and their files. Asks for confirmation; deletes none if one of them has not ended.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    settings = Settings.read()
    found = find_all(settings.storage, runs)
    for paths in found:
        if not (force and run_state.is_damaged(paths)):
            actions.require_ended(run_state.read_state(paths))
        if not force:
            refuse_in_use(paths)
    what = f"{found[0].run_id} and its files" if len(found) == 1 else f"these {len(found)} runs and their files"
    if not yes and len(found) > 1:
        click.echo("\n".join(paths.run_id for paths in found), err=True)
    if not yes and not _confirms(f"Delete {what}?"):
        raise Refused("nothing was deleted; answer y, or give --yes")
    for paths in found:
        actions.delete(paths, force=force)
        click.echo(f"{paths.run_id} is deleted", err=True)


def _confirms(question: str) -> bool:
    """Ask a question; the end of the input, as in a cron job, is no."""
    try:
        return click.confirm(question, err=True)
    except click.Abort as error:
        if not isinstance(error.__context__, EOFError):
            raise
        click.echo(err=True)
        return False
