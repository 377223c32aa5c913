"""`nightshift completion`, and the run ids, names and paths that the shell completes."""

import sys

import click
from click.shell_completion import CompletionItem

from cluster.errors import ClusterError
from cluster.settings import Settings
from jobs.cli.command import command
from jobs.runs import state as run_state

MOST = 200  # runs that are offered, the newest
LINES = {
    "bash": ('eval "$(_NIGHTSHIFT_COMPLETE=bash_source nightshift)"', "~/.bashrc"),
    "zsh": ('eval "$(_NIGHTSHIFT_COMPLETE=zsh_source nightshift)"', "~/.zshrc"),
    "fish": ("_NIGHTSHIFT_COMPLETE=fish_source nightshift | source", "~/.config/fish/config.fish"),
}


@command(example="nightshift completion bash >> ~/.bashrc")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(tuple(LINES)))
def completion(shell: str) -> None:
    """Print the shell command that enables completion of commands, options, runs and paths.

    Add it to the startup file of your shell.
    """
    line, file = LINES[shell]
    click.echo(line)
    if sys.stdout.isatty():  # elsewhere the line is evaluated or has been added
        click.echo(f"Add this line to {file} and start a new shell.", err=True)


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the promoted names and the runs that begin with what was typed; if there are none, let paths complete."""
    from jobs.runs.promotions import promoted_names  # noqa: PLC0415 -- pydantic is for few commands

    try:
        found = promoted_names(Settings.read().storage)
    except (ClusterError, OSError):
        return complete_path(ctx, param, incomplete)
    promoted = [CompletionItem(name) for name in found if name.startswith(incomplete)]
    return [*promoted, *complete_run(ctx, param, incomplete)] or complete_path(ctx, param, incomplete)


def complete_path(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Let the shell complete files and folders: without this, it would complete nothing here."""
    return [CompletionItem(incomplete, type="file")]


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Return the runs whose id or name begins with what was typed, newest first."""
    try:
        storage = Settings.read().storage
        ids = reversed(run_state.all_ids(storage))
        names = sorted(file.stem for file in (storage / "names").glob("*.json"))
    except (ClusterError, OSError):
        return []
    return [CompletionItem(text) for text in (*names, *ids) if text.startswith(incomplete)][:MOST]
