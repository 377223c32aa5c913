"""The classes behind every command: `--help` with an example, and options under headings."""

from collections.abc import Callable
from typing import Any

import click

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
INDENT = "  "


class _Help(click.Command):
    """Help with an example, then the options under the headings of their groups.

    Args:
        example: Lines to type, printed as they are.
    """

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the description and the example."""
        super().format_help_text(ctx, formatter)
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"{INDENT}{line}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group of options under its heading; an option without a group joins the group before it."""
        heading, sections = "Options", dict[str, list[tuple[str, str]]]()
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                heading = getattr(parameter, "heading", heading)
                sections.setdefault(heading, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Command(_Help):
    """A command with such help."""


class Group(_Help, click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the commands."""
        _Help.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def command(name: str | None = None, *, example: str = "", **more: Any) -> Callable[[Callable[..., Any]], Command]:
    """Return the decorator that makes a function a `Command`."""
    return click.command(name, cls=Command, example=example, **more)
