"""`nightshift models`: names for the models in use, with history; a worse model is refused."""

import difflib
import json
from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.command import Group
from jobs.cli.completion import complete_model
from jobs.cli.models_card import card
from jobs.cli.option_groups import OptionGroup, json_option, options, run_argument
from jobs.cli.option_types import Share
from jobs.cli.progress_bar import shown_spinner
from jobs.cli.terminal import terminal_text
from jobs.cli.text_table import Column, output_width, table_text
from jobs.errors import Refused
from jobs.queue.promote import promote_model
from jobs.runs import promotions
from jobs.runs.promotions import Promotion
from trainer.specs.metric import COMPARED

LIST_COLUMNS = (
    Column(title="NAME"), Column(title="MODEL"), Column(title="WHEN", importance=3),
    Column(title="WHO", importance=2, least=8), Column(title="WHY", importance=1, least=8),
)  # fmt: skip
HISTORY_COLUMNS = (*LIST_COLUMNS[1:], Column(title="COMPARED", importance=4, least=12))
PROMOTION = OptionGroup(
    "Promotion",
    (
        click.option("--as", "name", required=True, metavar="NAME", help="Name of the model in use."),
        click.option("--why", metavar="TEXT", help="Reason, which `models history` shows."),
        click.option("--split", metavar="SPLIT",
                     help="Split on which both models were evaluated.  [default: test, else valid]"),
        click.option("--positive", metavar="CLASS",
                     help="Positive class, for sensitivity, specificity and AUROC; of multi-label models, the label to "
                     "compare them on.  [default: that of the evaluations]"),
        click.option("--metric", type=click.Choice(COMPARED), default="auroc", show_default=True,
                     help="Metric in which the model may not be worse."),
        click.option("--margin", type=Share(), metavar="SHARE", default=0.0, show_default=True,
                     help="Largest loss in --metric that you accept."),
        click.option("--force", is_flag=True, help="Promote a model that is worse."),
    ),
)  # fmt: skip


@click.group(cls=Group)
def models() -> None:
    """Give names to models in use, and write their cards. Commands accept such a name as MODEL."""


models.add_command(card)


@models.command(example='nightshift models promote train-20261123-203000-a1b2c3 --as chest --why "more films"')
@run_argument("model")
@options(PROMOTION)
def promote(model: str, **given: Any) -> None:
    """Give MODEL a name, unless it is worse than the model that has the name.

    Both models are compared on the images of one split that both have scored, as `nightshift compare` does, or else by
    the metrics with which they were published, if these are of the same split. If there is no such split, they are not
    compared, and the history says so; with --split, MODEL is refused instead. The name then means MODEL; runs that were
    submitted with it before keep their model.
    """
    with shown_spinner("comparing"):
        chosen, before = promote_model(Settings.read(), model, **given)
    name = given["name"]
    click.echo(f"{name} is {chosen.model}" + (f", before {before.model}" if before else ""), err=True)
    if chosen.compared:
        click.echo(f"compared: {chosen.compared}", err=True)


@models.command(name="list", example="nightshift models list")
@options(OptionGroup("Output", (json_option("Print the models as JSON."),)))
def list_models(as_json: bool) -> None:
    """List the names in use and their models. Names whose file is damaged are left out, and the files are named."""
    newest, damaged = promotions.models_in_use(Settings.read().storage)
    for line in damaged:
        click.echo(terminal_text(line), err=True)
    if as_json:
        click.echo(json.dumps([{"name": name, **each.model_dump()} for name, each in newest.items()], indent=2))
        return
    if not newest:
        if not damaged:
            click.echo("no models; `nightshift models promote MODEL --as NAME` names one", err=True)
        return
    click.echo(table_text(LIST_COLUMNS, [(name, *_row(each)) for name, each in newest.items()], output_width()))


@models.command(example="nightshift models history chest")
@click.argument("name", shell_complete=complete_model)
@options(OptionGroup("Output", (json_option("Print the promotions as JSON."),)))
def history(name: str, as_json: bool) -> None:
    """Show which models have had a name, the newest first: when, who promoted them, and why."""
    known = promotions.history_of(Settings.read().storage, name)
    if not known:
        close = difflib.get_close_matches(name, promotions.promoted_names(Settings.read().storage), n=1)
        cure = f"did you mean {close[0]}?" if close else "`nightshift models list` shows them"
        raise Refused(f"no model is called {name!r}; {cure}")
    if as_json:
        click.echo(json.dumps([each.model_dump() for each in reversed(known)], indent=2))
        return
    rows = [(*_row(each), _compared_text(each)) for each in reversed(known)]
    click.echo(table_text(HISTORY_COLUMNS, rows, output_width()))


def _row(promotion: Promotion) -> tuple[str, ...]:
    when = promotion.when.replace("T", " ")[:16]
    return promotion.model, when, terminal_text(promotion.who), terminal_text(" ".join((promotion.why or "").split()))


def _compared_text(promotion: Promotion) -> str:
    return f"{'forced, ' if promotion.forced else ''}{promotion.compared or ''}"
