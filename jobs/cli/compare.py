"""`nightshift compare`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from cluster.files import write_text
from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.completion import complete_model, complete_path
from jobs.cli.option_groups import OptionGroup, json_option, options
from jobs.cli.option_types import Share
from jobs.cli.predict import output_file
from jobs.cli.progress_bar import shown_spinner
from jobs.cli.terminal import terminal_text
from trainer.specs.metric import COMPARED, MARGIN

MOST_MODELS = 26  # named A to Z
MARGIN_HELP = (
    "Non-inferiority margin, such as 0.02: the largest loss in --metric that you accept. Choose it before you look at "
    "the results."
)
COMPARISON = OptionGroup(
    "Comparison",
    (
        click.option("--split", metavar="SPLIT", help="Split that the models were evaluated on.  [default: test]"),
        click.option(
            "--positive", metavar="CLASS",
            help="Positive class, for sensitivity, specificity and AUROC.  [default: that of the evaluations]",
        ),
        click.option("--margin", type=Share(), metavar="SHARE", default=MARGIN, show_default=True, help=MARGIN_HELP),
        click.option(
            "--metric", type=click.Choice(COMPARED), default="auroc", show_default=True,
            help="Metric that --margin is about.",
        ),
        click.option(
            "--strict", is_flag=True,
            help="Non-inferiority test: exit code 1 too if these images are too few to show that B is not worse.",
        ),
    ),
)  # fmt: skip
OUTPUT = OptionGroup(
    "Output",
    (
        click.option(
            "--html",
            metavar="FILE",
            shell_complete=complete_path,
            help="Also write a page with the metrics, ROC curves and options.",
        ),
        json_option("Print the comparison as JSON."),
    ),
)


@command(example="nightshift compare train-20261123-203000-a1b2c3 train-20261124-203000-d4e5f6 --margin 0.02")
@click.argument("models", nargs=-1, metavar="A B [C]...", shell_complete=complete_model)
@options(COMPARISON, OUTPUT)
def compare(models: tuple[str, ...], *, html: str | None, as_json: bool, strict: bool, **given: Any) -> None:
    """Compare B, and C and further ones, with A on the images that all of them have scored.

    Each is a training run, a search (its best model is used), a folder with a published model, or an evaluation run. Of
    a model, the newest evaluation of the split is used; `nightshift evaluate` makes one.

    Images are matched by their identity in the data set. Each figure has the paired difference to A, its 95 %
    confidence interval (the wider of the formula's and the bootstrap's, which draws whole groups), and a test: McNemar
    for shares, exact where few images differ; DeLong for AUROC. With several candidates, p values are also given after
    Holm's correction.

    The exit code is 1 if B is worse than A by more than the margin in --metric, or if the whole interval of another
    figure lies below minus the margin. On few images a difference can be small by chance: the output says whether the
    whole interval of the difference lies above minus the margin, as a non-inferiority test demands, and with --strict
    the exit code is 1 unless it does.

    Multi-label models are compared on one label, the positive class, on the images where it is known.
    """
    if not 2 <= len(models) <= MOST_MODELS:  # noqa: PLR2004
        count = "1 model is given" if len(models) == 1 else f"{len(models)} models are given"
        raise click.UsageError(f"{count}; give 2 to {MOST_MODELS}, the reference first")
    page = None if html is None else output_file(html, "--html")
    with shown_spinner("comparing"):
        # These take seconds, and --help does not wait for them.
        from jobs.cli.comparison_view import comparison_text  # noqa: PLC0415
        from jobs.runs.comparison import compared  # noqa: PLC0415
        from trainer.report.comparison_page import render_comparison  # noqa: PLC0415

        view = compared(Settings.read().storage, models, **given)
    if page is not None:
        write_text(Path(page), render_comparison(view.page()))
    click.echo(json.dumps(view.to_json(), indent=2) if as_json else terminal_text(comparison_text(view)))
    if page is not None:
        click.echo(f"page     {page}", err=True)
    passes = view.comparison.passes and (view.comparison.is_shown or not strict)
    sys.exit(0 if passes else 1)
