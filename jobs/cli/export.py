"""`nightshift export`."""

from pathlib import Path
from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.completion import complete_path
from jobs.cli.config_file import CONFIG
from jobs.cli.option_groups import OptionGroup, options, run_argument
from jobs.cli.options import OUTPUT, WHEN, option
from jobs.cli.predict import input_place, output_file
from jobs.cli.submission import submit_options
from jobs.errors import InvalidOption
from jobs.queue.checks import model_of
from trainer.specs import ExportSpec

ENDINGS = {"onnx": (".onnx",), "torchscript": (".pt", ".pth", ".ts")}  # of file names; the first is the usual one

FILE = OptionGroup(
    "File",
    (
        option(ExportSpec, "format", "File format."),
        click.option(
            "--output", metavar="FILE", shell_complete=complete_path,
            help="Copy the exported file to this path; the original stays in the run folder.",
        ),
        click.option(
            "--samples", metavar="IMAGES", shell_complete=complete_path,
            help="Images or shards used to compare the file with the model.  [default: the data of the training run]",
        ),
        option(
            ExportSpec, "threshold",
            "Put the model's threshold of this name into the metadata.  [default: none, the most probable class]",
            metavar="NAME",
        ),
    ),
)  # fmt: skip


@command(example="nightshift export train-20261123-203000-a1b2c3 --format onnx --output chest.onnx --wait")
@run_argument("model")
@options(CONFIG, FILE, WHEN, OUTPUT)
def export(model: str, output: str | None, samples: str | None, **given: Any) -> None:
    """Export MODEL to an ONNX or TorchScript file and print the run id.

    MODEL is a training run, a search (its best model is used), a promoted name, or a folder with a published model.
    The exported model takes uint8 RGB images and returns calibrated probabilities. The metadata of the file contains
    the classes, the image size and the decision rule. Before it is published, its outputs are compared with those of
    MODEL on real images.
    """
    target = output_file(output)
    _refuse_other_ending(output, str(given["format"]))
    place = input_place(samples) if samples else None
    found = model_of(Settings.read(), model).name
    submit_options(ExportSpec, given, model=found, samples=place, output=target)


def _refuse_other_ending(output: str | None, form: str) -> None:
    """Refuse the name of a file that is usual for another format.

    Raises:
        InvalidOption: The name would say what the file is not.
    """
    ending = "" if output is None else Path(output).suffix.lower()
    other = next((name for name, endings in ENDINGS.items() if ending in endings and name != form), None)
    if other is not None:
        raise InvalidOption(
            f"--output {output} is a name of {other} files; end it in {ENDINGS[form][0]}, or give --format {other}"
        )
