"""`nightshift predict` and `nightshift export`: what a published model is for."""

from pathlib import Path
from typing import Any

import click

from cluster.settings import Settings
from data_shards.locations import local_folder
from jobs.cli.option_types import GpusPerWorker
from jobs.cli.options import HOW, WHEN, option, options
from jobs.cli.train import queue_or_show
from jobs.queue.checks import model_of
from trainer.errors import SpecError
from trainer.specs import ExportSpec, PredictSpec

GPUS = (option(PredictSpec, "gpus_per_worker", type=GpusPerWorker(), help="Compute on a GPU or on CPUs."),)


@click.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--output", metavar="FILE", help="Where the table goes besides the run's folder.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of CSV.")
@click.option("--split", help="Of shards only this split.")
@option(PredictSpec, "batch_size", type=int, help="Images at once.")
@options(GPUS, WHEN, HOW)
def predict(model: str, images: tuple[str, ...], output: str | None, as_json: bool, **given: Any) -> None:
    r"""Write a table of what MODEL takes IMAGES for, and print the run id.

    IMAGES are files, folders of images, or shards. The table has a row an image, in order: the likeliest class, the
    decision at the threshold that `evaluate --min-sensitivity` stored, a probability for each class, and the error of
    an image that cannot be read.

    \b
        nightshift predict train-20261123-203000-a1b2c3 films/ --output predictions.csv --wait
    """
    queue_or_show(
        PredictSpec,
        given,
        model=model_of(Settings.read(), model)[0],
        images=tuple(_place(given_place) for given_place in images),
        output=_target(output),
        form="json" if as_json or str(output).endswith(".json") else "csv",
    )


@click.command()
@click.argument("model")
@option(ExportSpec, "format", type=click.Choice(["onnx", "torchscript"]), help="Of the file.")
@click.option("--output", metavar="FILE", help="Where the file goes besides the run's folder.")
@click.option("--samples", metavar="IMAGES", help="What the file is compared on; by default the model's own data.")
@options(WHEN, HOW)
def export(model: str, output: str | None, samples: str | None, **given: Any) -> None:
    r"""Write MODEL as one file for other programs, and print the run id.

    The file takes RGB bytes and gives calibrated probabilities; classes, sizes and the threshold stand in it. It is
    compared with the model on real images before it appears.

    \b
        nightshift export train-20261123-203000-a1b2c3 --format onnx --output chest.onnx --wait
    """
    place = _place(samples) if samples else None
    found = model_of(Settings.read(), model)[0]
    queue_or_show(ExportSpec, given, model=found, samples=place, output=_target(output))


def _place(given: str) -> str:
    """Return the absolute place of images; the job worker stands in another folder.

    Raises:
        SpecError: There is nothing.
        SourceError: A URL is of a kind that is not allowed.
    """
    folder = local_folder(given)
    if folder is None:
        return given
    path = folder.expanduser().absolute()
    if not path.exists():
        raise SpecError(f"{given} does not exist; give image files, folders of images, or shards")
    return str(path)


def _target(output: str | None) -> str | None:
    """Return the absolute place of a file to write.

    Raises:
        SpecError: Its folder does not exist, or a folder has its name.
    """
    if output is None:
        return None
    path = Path(output).expanduser().absolute()
    if not path.parent.is_dir() or path.is_dir():
        raise SpecError(f"--output {output} can be no file there; name one in a folder that exists")
    return str(path)
