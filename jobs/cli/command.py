"""The classes behind every command: `--help` with an example, and options under headings."""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import click

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
INDENT = "  "
SHORT = 2  # characters of a short option
ALIASES = {"ls": "list", "ps": "list"}
FAILED, USAGE, INTERRUPTED = 1, 2, 128 + 2  # exit codes; the last after Ctrl-C


class _Help(click.Command):
    """Help with an example, then the options under the headings of their groups.

    Args:
        example: Lines to type, printed as they are.
    """

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            click.NoSuchOption: There is no such option; of one with a single dash, such as -epochs, it has the word.
        """
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            whole = [word for word in words if word.startswith(name) and len(word) > SHORT]
            if len(name) != SHORT or not whole:
                raise
            raise click.NoSuchOption(whole[0], ctx=ctx) from error

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
    """A group of such commands.

    Attributes:
        elsewhere: What other tools call the commands, and ours; the error for an unknown command suggests ours.
    """

    command_class = Command
    group_class = type
    elsewhere: ClassVar[Mapping[str, str]] = {
        "rm": "remove", "delete": "remove", "create": "add", "new": "add", "list": "show", "show": "list",
        "start": "resume", "stop": "pause", "unpause": "resume", "clear": "prune", "clean": "prune", "check": "verify",
    }  # fmt: skip

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name.

        Raises:
            click.UsageError: There is none; the text suggests the one that was probably meant.
        """
        name = ALIASES.get(args[0], args[0])
        if ctx.resilient_parsing or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, [name, *args[1:]])
        names, is_root = self.list_commands(ctx), ctx.parent is None
        given = args[0] if is_root else f"{ctx.command_path} {args[0]}"
        others = f"`{ctx.command_path} --help` lists the commands" if is_root else f"use one of {', '.join(names)}"
        meant = self._meant(name, names)
        cure = f"did you mean `{ctx.command_path} {meant}`?" if meant else others
        raise click.UsageError(f"there is no command {given!r}; {cure}", ctx)

    def _meant(self, name: str, names: Sequence[str]) -> str | None:
        """Return the command or option that was probably meant by a name, None if there is none."""
        ours = self.elsewhere.get(name, "")
        if ours.startswith("-") or ours.partition(" ")[0] in names:
            return ours
        return next(iter(difflib.get_close_matches(name, names, n=1)), None)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the commands."""
        _Help.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the whole first sentence of its help, which wraps; click would cut it."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, one.get_short_help_str(limit=sys.maxsize)) for name, one in found if one and not one.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def command(name: str | None = None, *, example: str = "", **more: Any) -> Callable[[Callable[..., Any]], Command]:
    """Return the decorator that makes a function a `Command`."""
    return click.command(name, cls=Command, example=example, **more)
