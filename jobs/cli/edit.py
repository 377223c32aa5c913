"""`nightshift edit`: change tags and note of a run."""

import json

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.option_groups import OptionGroup, json_option, options, run_argument
from jobs.cli.options import TAG
from jobs.cli.terminal import echo, terminal_text
from jobs.cli.text_table import output_width, wrapped
from jobs.errors import InvalidOption
from jobs.runs import state as run_state
from jobs.runs.labels import change_labels

LABELS = OptionGroup(
    "Tags and note",
    (
        TAG,
        click.option("--remove-tag", "removed", multiple=True, metavar="TAG", help="Tag to remove; can be repeated."),
        click.option("--note", metavar="TEXT", help='New note; "" removes the note.'),
    ),
)
OUTPUT = OptionGroup("Output", (json_option("Print the tags and the note as JSON."),))


@command(example='nightshift edit first-night --tag baseline --remove-tag draft --note "before the new films"')
@run_argument("run", metavar="ID")
@options(LABELS, OUTPUT)
def edit(run: str, *, tags: tuple[str, ...], removed: tuple[str, ...], note: str | None, as_json: bool) -> None:
    """Change the tags and the note of a run, whatever its state, and print them.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    paths = run_state.find(Settings.read().storage, run)
    if not tags and not removed and note is None:
        raise InvalidOption("there is nothing to change; give --tag, --remove-tag or --note")
    if both := sorted({*tags} & {*removed}):
        raise InvalidOption(f"--tag and --remove-tag both name {both[0]}; give it to one of them")
    state = change_labels(paths, add=tags, remove=removed, note=note)
    if as_json:
        click.echo(json.dumps({"tags": state.tags, "note": state.note}, indent=2))
        return
    width = output_width()
    for label, text in (("tags", ", ".join(state.tags)), ("note", state.note or "")):
        echo(wrapped(terminal_text(text) or "-", width, first=f"{label}  ", indent=6))
