"""`nightshift shards describe`, and the file that describes a data set."""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from data_shards.about import EXAMPLE, About, about_of, about_rows
from data_shards.errors import OptionError
from jobs.cli.command import command
from jobs.cli.completion import complete_path
from jobs.cli.config_file import read_config
from jobs.cli.option_groups import path_argument
from jobs.cli.terminal import echo, terminal_text
from jobs.errors import InvalidOption


class AboutFile(click.ParamType[About]):
    """A YAML or JSON file of statements about a data set."""

    name = "FILE"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete files."""
        return complete_path(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> About:
        """Return the statements."""
        if isinstance(value, About):
            return value
        try:
            return about_of(read_config(Path(value), what="description", example=EXAMPLE), str(value))
        except (InvalidOption, OptionError) as error:
            self.fail(terminal_text(str(error)), param, ctx)


@command(example="nightshift shards describe shards/chest dataset.yaml")
@path_argument("shards")
@click.argument("about", type=AboutFile(), metavar="FILE")
def describe(shards: str, about: About) -> None:
    """State where the data set SHARDS comes from, who labelled it and what it is meant for.

    FILE is a YAML file with any of the keys source, dates, sites, population, labelled_by, reference_standard,
    intended_use, ethics, license and contact. It replaces what was stated before, by this command or by
    `shards pack --about`. The images and the digest of the data set stay.
    """
    from data_shards.pack.describe import describe as describe_shards  # noqa: PLC0415

    index = describe_shards(shards, about)
    for title, text in about_rows(index.about):
        echo(f"{title}: {text}", err=True)
