"""The references of the user guide, made from the code: commands with their options, and settings.

`python docs/reference.py commands` and `python docs/reference.py settings` print them as Markdown.
"""

import sys
from collections.abc import Iterator

import click

from cluster.environment_variables import VARIABLES
from jobs.cli.command import HELP_NAMES
from jobs.cli.main import cli

WIDTH = 88  # columns of the help texts, as many as a page of the guide has


def commands() -> str:
    """Return the help text of each command, as `nightshift COMMAND --help` prints it."""
    context = click.Context(cli, info_name="nightshift", max_content_width=WIDTH, terminal_width=WIDTH, **HELP_NAMES)
    return "\n".join(f"\n## {path}\n\n```text\n{text}\n```\n" for path, text in help_texts(context))


def help_texts(context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the words that call a command, and its help text; then the same of all commands below it."""
    yield context.command_path, context.command.get_help(context)
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            found = context.command.get_command(context, name)
            if found and not found.hidden:
                yield from help_texts(click.Context(found, info_name=name, parent=context))


def settings() -> str:
    """Return the table of the environment variables."""
    rows = (f"| `{found.name}` | {found.meaning} | {found.unset} |" for found in VARIABLES)
    return "\n".join(["", "| name | meaning | unset |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.stdout.write({"commands": commands, "settings": settings}[sys.argv[1]]())
