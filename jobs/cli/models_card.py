"""`nightshift models card`."""

from pathlib import Path

import click

from cluster.files import write_text
from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.completion import complete_path
from jobs.cli.option_groups import OptionGroup, options, run_argument
from jobs.cli.predict import output_file
from jobs.cli.terminal import echo
from jobs.errors import Refused
from jobs.queue.checks import model_of

CARD_FILE = "card.html"
FILE = OptionGroup(
    "File",
    (
        click.option(
            "--output",
            metavar="FILE",
            shell_complete=complete_path,
            help=f"Path of the card.  [default: {CARD_FILE} beside the model]",
        ),
    ),
)


@command(example="nightshift models card train-20261123-203000-a1b2c3 --output card.html")
@run_argument("model")
@options(FILE)
def card(model: str, output: str | None) -> None:
    """Write the card of MODEL as an HTML page, and print its path.

    The card has the intended use, the data, the metrics of the newest evaluation of each split with their intervals,
    subgroups, thresholds, limitations, the command that repeats the training, and the items of TRIPOD+AI,
    STARD-AI and CLAIM that it fills or leaves open. What nobody stated is "not stated"; `shards describe` states what
    is known of the data set.
    """
    from jobs.cli.card_view import model_card  # noqa: PLC0415 -- --help does not wait for it
    from trainer.report.model_card import render_card  # noqa: PLC0415

    settings = Settings.read()
    target = output_file(output)
    named = model_of(settings, model)
    folder = named.published_folder()
    path = Path(target) if target else folder / CARD_FILE
    page = render_card(model_card(settings.storage, folder, named.name))
    try:
        write_text(path, page)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}; give another file with --output") from error
    echo(str(path))
