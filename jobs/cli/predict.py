"""`nightshift predict`."""

import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from cluster.settings import Settings
from data_shards.index import INDEX_NAME
from data_shards.locations import local_folder
from jobs.cli.command import command
from jobs.cli.completion import complete_path
from jobs.cli.config_file import CONFIG
from jobs.cli.guarded_process import guarded_process
from jobs.cli.option_groups import OptionGroup, options, path_argument, run_argument
from jobs.cli.option_types import GpusPerWorker
from jobs.cli.options import OUTPUT, WHEN, option
from jobs.cli.submission import SpecCollector, submit_options
from jobs.errors import InvalidOption
from jobs.queue.checks import NamedModel, checked, model_of
from trainer.errors import CheckpointError, SpecError
from trainer.specs import PredictSpec, build

SHARD_ENDING = ".tar"
PREDICTION = (sys.executable, "-P", "-m", "trainer.inference")  # -P: never import a user's own trainer.py

OTHER_TABLES = (".xlsx", ".xls", ".ods", ".parquet", ".tsv", ".gz", ".zip", ".html", ".jsonl")  # are not written

TABLE = OptionGroup(
    "Table",
    (
        click.option(
            "--output",
            metavar="FILE",
            shell_complete=complete_path,
            help="Copy the table to this file; the original stays in the run folder.",
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
        click.option(
            "--now", is_flag=True, help="Predict here and at once, on the CPU and without the queue; print the table."
        ),
    ),
)


@command(
    example="nightshift predict train-20261123-203000-a1b2c3 images/ --output predictions.csv --wait\n"
    "nightshift predict train-20261123-203000-a1b2c3 film.png --now --json"
)
@run_argument("model")
@path_argument("images", nargs=-1, required=True)
@options(CONFIG, TABLE, WHERE_ONE, WHEN, OUTPUT)
def predict(model: str, images: tuple[str, ...], output: str | None, now: bool, **given: Any) -> None:
    """Classify IMAGES with MODEL, write a table of predictions, and print the run id.

    MODEL is a training run, a search (its best model is used), a promoted name, or a folder with a published model.
    IMAGES are image files, folders of images, or shards.

    The table has one row per file, in input order: the most probable class, the decision (the same class, unless
    --threshold names a threshold), and the probability of each class. For a file that cannot be read, the row has the
    reason. Of a multi-label model, the decision is none or several labels, and each label has a probability and a
    decision of 1 or 0. Hidden files and system files, such as Thumbs.db, are skipped and counted.

    The table is CSV. With --json it is JSON, and --wait prints it on stdout. With --now, the table goes to stdout, and
    no run is made: neither Redis nor a job worker is needed.
    """
    settings = Settings.read()
    found = _model_given_first(settings, model, images)
    asked: dict[str, Any] = {
        "model": found.name,
        "images": tuple(input_place(place) for place in images),
        "output": output_file(output),
        "form": "json" if given["as_json"] or _table_ending(output) == ".json" else "csv",
    }
    if now:
        SpecCollector.refuse("--now")
        _predict_now(settings, found, {**_without_queue(given), **asked})
    submit_options(PredictSpec, given, **asked)


def _model_given_first(settings: Settings, model: str, images: tuple[str, ...]) -> NamedModel:
    """Return the model.

    Raises:
        InvalidOption: MODEL and IMAGES are in the wrong order.
        CheckpointError: It is not a model.
    """
    try:
        return model_of(settings, model)
    except CheckpointError as error:
        last = images[-1]
        if not Path(model).expanduser().exists() or Path(last).expanduser().exists():
            raise
        raise InvalidOption(f"{model} is not a model; write nightshift predict {last} {model}, MODEL first") from error


def _table_ending(output: str | None) -> str:
    """Return the ending of the file for the table, in lower case.

    Raises:
        InvalidOption: It is that of another form than CSV or JSON.
    """
    ending = "" if output is None else Path(output).suffix.lower()
    if ending in OTHER_TABLES:
        raise InvalidOption(f"--output {output} would not be {ending[1:]}; end the name in .csv or .json")
    return ending


def _without_queue(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a prediction that needs no queue.

    Raises:
        InvalidOption: An option is about the queue, or asks for a GPU.
    """
    context = click.get_current_context()
    of_run = {name for name in given if name not in PredictSpec.model_fields and name != "as_json"}
    refused = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in of_run and context.get_parameter_source(parameter.name) != ParameterSource.DEFAULT
    ]
    if refused:
        raise InvalidOption(f"--now makes no run, to which {refused[0]} would belong; leave out one of them")
    if given["gpus_per_worker"] == 1:
        raise InvalidOption("--now predicts on the CPU; leave out --gpus-per-worker 1, or leave out --now")
    return {name: value for name, value in given.items() if name in PredictSpec.model_fields}


def _predict_now(settings: Settings, model: NamedModel, options: dict[str, Any]) -> NoReturn:
    """Predict in a process of its own, because the command line does not import torch; exit with its exit code.

    Raises:
        CheckpointError: The run of the model has not ended.
    """
    if model.folder is None:
        raise CheckpointError(f"{model.name} has not ended, so it has no model; wait for it, or leave out --now")
    spec = build(PredictSpec, **options)
    checked(settings, spec)
    request = {
        "spec": spec.model_dump(mode="json", exclude={"kind"}),
        "folder": str(model.folder),
        "shard_cache_bytes": settings.shard_cache_bytes,
    }
    click.echo(f"loading the model {model.name}", err=True)
    with guarded_process(PREDICTION, request) as process:
        code = process.wait()
    sys.exit(code)


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
    if path.suffix == SHARD_ENDING and (path.parent / INDEX_NAME).is_file():
        raise SpecError(f"{given} is one file of a data set; give its folder {Path(given).parent}")
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
