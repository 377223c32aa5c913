"""`nightshift predict`."""

from pathlib import Path
from typing import Any

import click

from cluster.settings import Settings
from data_shards.locations import local_folder
from jobs.cli.command import command
from jobs.cli.config_file import CONFIG
from jobs.cli.option_types import GpusPerWorker
from jobs.cli.options import OUTPUT, WHEN, OptionGroup, option, options, run_argument
from jobs.cli.submission import submit_options
from jobs.queue.checks import model_of
from trainer.errors import SpecError
from trainer.specs import PredictSpec

TABLE = OptionGroup(
    "Table",
    (
        click.option(
            "--output", metavar="FILE", help="Copy the table to this file; the original stays in the run folder."
        ),
        option(PredictSpec, "split", "Split to classify if IMAGES are shards.  [default: all]", metavar="SPLIT"),
        option(
            PredictSpec,
            "threshold",
            "Decide at the model's threshold of this name, which `evaluate --min-sensitivity` chose.  "
            "[default: the most probable class]",
            metavar="NAME",
        ),
    ),
)
WHERE_ONE = OptionGroup(
    "Where",
    (
        option(
            PredictSpec,
            "gpus_per_worker",
            "Number of GPUs; auto is 1 if there is a GPU, else 0.",
            type=GpusPerWorker(),
            metavar="0|1|auto",
        ),
        option(PredictSpec, "batch_size", "Images per batch.", metavar="N"),
    ),
)


@command(example="nightshift predict train-20261123-203000-a1b2c3 images/ --output predictions.csv --wait")
@run_argument("model")
@click.argument("images", nargs=-1, required=True)
@options(CONFIG, TABLE, WHERE_ONE, WHEN, OUTPUT)
def predict(model: str, images: tuple[str, ...], output: str | None, **given: Any) -> None:
    """Classify IMAGES with MODEL, write a table of predictions, and print the run id.

    MODEL is a training run, a search (its best model is used), a promoted name, or a folder with a published model.
    IMAGES are image files, folders of images, or shards.

    The table has one row per file, in input order: the most probable class, the decision (the same class, unless
    --threshold names a threshold), and the probability of each class. For a file that cannot be read, the row has the
    reason. Of a multi-label model, the decision is none or several labels, and each label has a probability and a
    decision of 1 or 0. Hidden files and system files, such as Thumbs.db, are skipped and counted.

    The table is CSV. With --json it is JSON, and --wait prints it on stdout.
    """
    submit_options(
        PredictSpec,
        given,
        model=model_of(Settings.read(), model).name,
        images=tuple(input_place(place) for place in images),
        output=output_file(output),
        form="json" if given["as_json"] or str(output).endswith(".json") else "csv",
    )


def input_place(given: str) -> str:
    """Return the absolute path or the URL of images; the job worker runs in another folder.

    Raises:
        SpecError: The path does not exist.
        SourceError: A URL has a scheme that is not allowed.
    """
    folder = local_folder(given)
    if folder is None:
        return given
    path = folder.expanduser().absolute()
    if not path.exists():
        raise SpecError(f"{given} does not exist; give image files, folders of images, or shards")
    return str(path)


def output_file(output: str | None, option_name: str = "--output") -> str | None:
    """Return the absolute path of a file to write.

    Raises:
        SpecError: Its folder does not exist, or it is a folder itself.
    """
    if output is None:
        return None
    path = Path(output).expanduser().absolute()
    if not path.parent.is_dir() or path.is_dir():
        raise SpecError(f"{option_name} {output} cannot be written; name a file in a folder that exists")
    return str(path)
