"""`nightshift evaluate`."""

from typing import Any

import click

from data_shards.index import INDEX_NAME
from data_shards.locations import local_folder
from jobs.cli.command import command
from jobs.cli.config_file import CONFIG
from jobs.cli.option_groups import OptionGroup, options, path_argument, run_argument
from jobs.cli.options import OUTPUT, WHEN, WHERE, option
from jobs.cli.submission import submit_options
from trainer.specs import EvaluateSpec

EVALUATION = OptionGroup(
    "Data and model",
    (
        option(EvaluateSpec, "split", "Split to evaluate on.", metavar="SPLIT"),
        option(
            EvaluateSpec, "positive",
            "Positive class, for sensitivity, specificity and false negatives.  [default: that of the threshold, else "
            "that of the training; without one, the recall of every class is reported]",
            metavar="CLASS",
        ),
        option(
            EvaluateSpec, "min_sensitivity",
            "Minimum sensitivity, such as 0.99: choose the threshold that reaches it on the valid split with the "
            "fewest false positives (of a multi-label model that of the label --positive), keep it beside the model "
            "under a name, and evaluate at it. The default decision stays as it is.  [default: off]",
            metavar="SHARE",
        ),
        option(
            EvaluateSpec, "threshold_name",
            "Name of the threshold that --min-sensitivity chooses.  [default: sensitivity-SHARE]", metavar="NAME",
        ),
        option(
            EvaluateSpec, "threshold",
            "Evaluate at the model's threshold of this name.  [default: the most probable class]", metavar="NAME",
        ),
        option(
            EvaluateSpec, "prevalence",
            "Share of the positive class where the model is to be used, such as 0.02: report the predictive values "
            "(PPV, NPV) at it.  [default: off]",
            metavar="SHARE",
        ),
        option(EvaluateSpec, "batch_size", "Global batch size (images per step, over all workers).", metavar="N"),
    ),
)  # fmt: skip


@command(example="nightshift evaluate train-20261123-203000-a1b2c3 shards/chest --positive covid --wait")
@run_argument("model")
@path_argument("shards")
@options(CONFIG, EVALUATION, WHERE, WHEN, OUTPUT)
def evaluate(model: str, shards: str, **given: Any) -> None:
    """Evaluate MODEL on one split of SHARDS and print the run id.

    MODEL is a training run, a search (its best model is used), a promoted name, or a folder with a published model.
    """
    place = local_folder(model)
    if place is not None and (place.expanduser() / INDEX_NAME).is_file():
        raise click.UsageError(f"{model} is a data set, not a model; write nightshift evaluate MODEL {model}")
    submit_options(EvaluateSpec, given, model=model, shards=shards)
