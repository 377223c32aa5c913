"""`nightshift export`."""

from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.options import OUTPUT, WHEN, OptionGroup, option, options, run_argument
from jobs.cli.predict import input_place, output_file
from jobs.cli.submission import submit_options
from jobs.queue.checks import model_of
from trainer.specs import ExportSpec

FILE = OptionGroup(
    "File",
    (
        option(ExportSpec, "format", "File format."),
        click.option("--output", metavar="FILE", help="Copy the model to this file; it is always in the run's folder."),
        click.option(
            "--samples", metavar="IMAGES",
            help="Images or shards on which the file is compared with the model.  [default: the model's own data]",
        ),
    ),
)  # fmt: skip


@command(example="nightshift export train-20261123-203000-a1b2c3 --format onnx --output chest.onnx --wait")
@run_argument("model")
@options(FILE, WHEN, OUTPUT)
def export(model: str, output: str | None, samples: str | None, **given: Any) -> None:
    """Export MODEL to one file for other programs and print the run id.

    MODEL is a training run, a search (its best model), or a model folder. The file takes RGB bytes and returns
    calibrated probabilities; its metadata holds the classes, the image size and the threshold. It is compared with the
    model on real images before it is published.
    """
    place = input_place(samples) if samples else None
    found = model_of(Settings.read(), model)[0]
    submit_options(ExportSpec, given, model=found, samples=place, output=output_file(output))
