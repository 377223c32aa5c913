"""`nightshift models`: names for the models in use, with history; a worse model is refused."""

import json
from pathlib import Path
from typing import Any

import click

from cluster.errors import StorageError
from cluster.files import read_json_object
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.index import SPLITS
from jobs.cli.command import Group
from jobs.cli.compare import METRICS
from jobs.cli.completion import complete_model
from jobs.cli.models_card import card
from jobs.cli.option_types import Share
from jobs.cli.options import OptionGroup, json_option, options, run_argument
from jobs.cli.terminal import terminal_text
from jobs.cli.text_table import Column, output_width, table_text
from jobs.errors import Refused
from jobs.queue.checks import model_of
from jobs.runs import promotions
from jobs.runs import state as run_state
from jobs.runs.evaluations import find_model
from jobs.runs.promotions import Promotion
from jobs.runs.record import model_mismatch
from trainer.errors import CheckpointError, ModelMismatch
from trainer.model.head import HeadConfig
from trainer.model.names import HEAD_FILE, MANIFEST_FILE
from trainer.specs.positive import OF_POSITIVE, refuse_unknown_positive, refuse_unstated_positive

TRIED_SPLITS = (SPLITS[-1], SPLITS[1])  # test, else valid
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
        click.option("--metric", type=click.Choice(METRICS), default="auroc", show_default=True,
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
def promote(model: str, *, name: str, why: str | None, force: bool, **comparison: Any) -> None:
    """Give MODEL a name, unless it is worse than the model that has the name.

    Both models are compared on the images of one split that both have scored, as `nightshift compare` does, or else by
    the metrics with which they were published, if these are of the same split. If there is no such split, they are not
    compared, and the history says so; with --split, MODEL is refused instead. The name then means MODEL; jobs that were
    submitted with it before keep their model.
    """
    settings = Settings.read()
    found = _published(settings, model)
    refuse_unknown_positive(comparison["positive"], HeadConfig.read(Path(found.folder) / HEAD_FILE).classes)
    known = promotions.history_of(settings.storage, name)
    before = known[-1] if known else None
    compared, is_worse = None, False
    if before is not None:
        if before.weights == found.weights:
            raise Refused(f"{name} is {before.model} already; `nightshift models history {name}` shows since when")
        compared, is_worse = _compared(settings.storage, before, found, **comparison)
        if is_worse and not force:
            raise Refused(f"{model} is worse than {name} ({before.model}): {compared}; --force promotes it")
    chosen = found.model_copy(update={"why": why, "compared": compared, "forced": is_worse})
    promotions.add(settings.storage, name, chosen, after=before)
    click.echo(f"{name} is {chosen.model}" + (f", before {before.model}" if before else ""), err=True)
    if compared:
        click.echo(f"compared: {compared}", err=True)


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
    if not newest and not damaged:
        click.echo("no models; `nightshift models promote MODEL --as NAME` names one", err=True)
    click.echo(table_text(LIST_COLUMNS, [(name, *_row(each)) for name, each in newest.items()], output_width()))


@models.command(example="nightshift models history chest")
@click.argument("name", shell_complete=complete_model)
@options(OptionGroup("Output", (json_option("Print the promotions as JSON."),)))
def history(name: str, as_json: bool) -> None:
    """Show which models have had a name, the newest first: when, who promoted them, and why."""
    known = promotions.history_of(Settings.read().storage, name)
    if not known:
        raise Refused(f"no model is called {name!r}; `nightshift models list` shows them")
    if as_json:
        click.echo(json.dumps([each.model_dump() for each in reversed(known)], indent=2))
        return
    rows = [(*_row(each), _compared_text(each)) for each in reversed(known)]
    click.echo(table_text(HISTORY_COLUMNS, rows, output_width()))


def _published(settings: Settings, text: str) -> Promotion:
    """Return the promotion of the model that a text names.

    Raises:
        CheckpointError: It is not a model, or has not been published yet.
        Refused: It is not the model that the result of its run names.
    """
    named = model_of(settings, text)
    folder = named.published_folder()
    if folder.name == "best" and (mismatch := model_mismatch(RunPaths(folder.parent))):
        raise Refused(mismatch)
    return Promotion(
        model=named.name,
        folder=str(folder),
        weights=find_model(settings.storage, str(folder)).weights,
        who=settings.owner,
        when=run_state.now(),
    )


def _compared(
    storage: Path,
    before: Promotion,
    candidate: Promotion,
    *,
    split: str | None,
    positive: str | None,
    metric: str,
    margin: float,
) -> tuple[str, bool]:
    """Return how a model compares with the one before, and whether it is worse.

    Raises:
        Refused: They cannot be compared on the split that a person named.
        SpecError: An option contradicts the evaluations, or the evaluations need one.
    """
    from jobs.cli.comparison_view import compared  # noqa: PLC0415 -- takes a second, and --help does not wait for it

    reasons = []
    for tried in TRIED_SPLITS if split is None else (split,):
        try:
            view = compared(
                storage, (before.model, candidate.model), split=tried, positive=positive, margin=margin, metric=metric
            )
        except (CheckpointError, ModelMismatch) as error:
            reasons.append(str(error))
            continue
        result = view.comparison.candidates[0]
        figure = next(each for each in result.figures if each.name == metric)
        if figure.first is None or figure.second is None:
            reasons.append(f"{metric} is undefined on the {tried} split; choose another --metric")
            continue
        worse_in = "".join(f"; worse in {name}" for name in result.margin.worse_in)
        text = (
            f"{metric} {figure.second:.4f} instead of {figure.first:.4f} on {view.comparison.images} images of the "
            f"{tried} split{worse_in}"
        )
        return text, not result.margin.passes
    found = _by_published_metrics(before, candidate, split=split, positive=positive, metric=metric, margin=margin)
    if found is None and split is not None:
        raise Refused(reasons[0])
    return found or (f"no: {reasons[0]}", False)


def _by_published_metrics(
    before: Promotion, candidate: Promotion, *, split: str | None, positive: str | None, metric: str, margin: float
) -> tuple[str, bool] | None:
    """Compare the metrics with which two models were published.

    Returns:
        None if they are not of one data set and split, not of `split`, or of another positive class where the metric is
        about it.

    Raises:
        SpecError: The metric is about the positive class, and nobody has said which this is.
    """
    try:
        old, new = (read_json_object(Path(each.folder) / MANIFEST_FILE) for each in (before, candidate))
        data, of_split, count = new["data"], new["metrics"]["split"], new["metrics"]["n"]
        is_same = old["data"] == data and old["metrics"]["split"] == of_split
        first, second = float(old["metrics"][metric]), float(new["metrics"][metric])
        of_positive = {each["metrics"].get("positive") for each in (old, new)}
        is_stated = any(each["metrics"].get("positive_stated", True) for each in (old, new))
        is_multi_label = bool(new["metrics"].get("multi_label"))
    except (StorageError, KeyError, TypeError, AttributeError, ValueError):  # published without, or by version 0.1.0
        return None
    if not is_same or split not in (None, of_split):
        return None
    if metric in OF_POSITIVE:
        if positive is None and not is_stated:
            refuse_unstated_positive(metric, HeadConfig.read(Path(candidate.folder) / HEAD_FILE).classes)
        if len(of_positive) > 1 or positive not in (None, *of_positive):
            return None
    elif positive is not None and is_multi_label:  # published is the mean of all labels
        return None
    text = f"{metric} {second:.4f} instead of {first:.4f} on the {count} images of the {of_split} split"
    return text, not second >= first - margin


def _row(promotion: Promotion) -> tuple[str, ...]:
    when = promotion.when.replace("T", " ")[:16]
    return promotion.model, when, terminal_text(promotion.who), terminal_text(" ".join((promotion.why or "").split()))


def _compared_text(promotion: Promotion) -> str:
    return f"{'forced, ' if promotion.forced else ''}{promotion.compared or ''}"
