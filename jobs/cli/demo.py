"""`nightshift demo`: from images to report on this machine, on sample data or the user's own images."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cluster import logs
from cluster.resources import this_machine
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.counted import counted, counted_by
from data_shards.pack.options import EncodeOptions, PackOptions
from jobs.cli.command import command
from jobs.cli.completion import complete_path
from jobs.cli.follow import show_progress
from jobs.cli.option_groups import OptionGroup, options
from jobs.cli.option_types import GpusPerWorker, SplitShares
from jobs.cli.progress_bar import shown_progress
from jobs.cli.terminal import echo, table_cell
from jobs.errors import Refused
from jobs.queue import actions
from jobs.queue.checks import checked, weights_file
from jobs.queue.stack import Stack, start_stack
from jobs.queue.submit import submit
from jobs.runs.record import read_record
from jobs.runs.request import build_request
from trainer.evaluation.metric_text import figure_text
from trainer.specs import EvaluateSpec, Spec, TrainSpec, build

SAMPLE_PIXELS = 32  # the side of the sample's images
SAMPLE_BATCH = 64  # half the steps of the default: at 32 px, the exchange of gradients takes a large part of a step
OWN_PIXELS = 64  # large enough to learn from, small enough for a laptop to fine-tune every layer
LOG_LINES = 30  # of a run that failed
REDIS_TRIES = 12  # a minute


DATA = OptionGroup(
    "Data and model",
    (
        click.option("--data", type=click.Path(exists=True, path_type=Path), metavar="FOLDER",
                     help="Folder with the layout split/class/image, or class/image with --split.  "
                     "[default: sample data, handwritten digits]"),
        click.option("--split", type=SplitShares(), metavar="T/V/T",
                     help="Split --data into train, valid and test by these percentages, such as 70/15/15."),
        click.option("--weights", default="none", show_default=True, metavar="imagenet|none|FILE",
                     shell_complete=complete_path,
                     help="Initial weights: imagenet (the official file), none (random), or a file."),
        click.option("--epochs", default=6, show_default=True, type=click.IntRange(1), metavar="N",
                     help="Number of passes over the training split."),
    ),
)  # fmt: skip
WHERE = OptionGroup(
    "Where",
    (
        click.option("--workers", default=2, show_default=True, type=click.IntRange(1), metavar="N",
                     help="Number of Ray Train workers (data-parallel processes)."),
        click.option("--gpus-per-worker", default="auto", show_default=True, type=GpusPerWorker(), metavar="0|1|auto",
                     help="GPUs per worker; auto is 1 if there is a GPU for each worker, else 0."),
    ),
)  # fmt: skip


@command(example="nightshift demo\nnightshift demo --data chest_xray --weights efficientnet-b0-355c32eb.pth")
@options(DATA, WHERE)
def demo(
    *, data: Path | None, split: str | None, weights: str, epochs: int, workers: int, gpus_per_worker: int | str
) -> None:
    """Pack images into shards, train and evaluate a model, and write a report.

    The demo starts an embedded Redis and a job worker on this machine, and stops them when it ends.
    """
    weights = weights_file(weights)
    # Always on this machine, whatever the environment says.
    settings = replace(Settings.read(), redis_url=None, ray_jobs_url=None).with_storage_ready()
    with start_stack(settings) as stack:
        shards = _pack(stack.settings, data, split)
        _print(_plan_text(weights, data is not None))
        gpus = _gpus_per_worker(gpus_per_worker, workers)
        spec = build(
            TrainSpec,
            shards=str(shards),
            epochs=epochs,
            workers=workers,
            gpus_per_worker=gpus,
            **_training_options(weights, data is not None),
        )
        trained = _run(stack, spec)
        scored = _run(stack, build(EvaluateSpec, model=trained, shards=str(shards), gpus_per_worker=gpus))
        _show(stack.settings, trained, scored)


def _gpus_per_worker(requested: int | str, workers: int) -> int | str:
    """Return 0 for "auto" on a machine with fewer GPUs than workers, which `train` refuses."""
    machine = this_machine()
    if requested != "auto" or not 0 < machine.gpus < workers:
        return requested
    _print(f"Using CPUs: {workers} workers need {workers} GPUs and there are {machine.gpus}")
    return 0


def _pack(settings: Settings, data: Path | None, split: str | None) -> Path:
    from data_shards.pack.packing import pack  # noqa: PLC0415 -- keeps --help fast

    options = PackOptions(split=split)
    if data is None:
        data = _sample(settings.storage / "demo" / "images")
        # Two handwritten digits that look the same are not a leak; the check is for photographs.
        options = replace(options, allow_leakage=True, encode=EncodeOptions(image_size=0))
    target = _free(settings.storage / "demo")
    with shown_progress("packing") as on_progress:
        index = pack(data, target, options, on_progress).index
    images = counted_by({name: index.samples_in(name) for name in index.splits}, "image")
    shards = counted(len(index.shards), "shard")
    _print(f"Packed {images} of {len(index.classes)} classes into {shards}: {target}")
    return target


def _free(folder: Path) -> Path:
    taken = {path.name for path in folder.glob("shards-*")}
    return folder / next(f"shards-{number}" for number in range(1, len(taken) + 2) if f"shards-{number}" not in taken)


def _sample(folder: Path) -> Path:
    _print("Writing the sample data: handwritten digits, 8x8 scans from scikit-learn")
    # In a separate process: the command line must not import scikit-learn. Ctrl-C reaches only this process, which then
    # ends the other one.
    subprocess.run(
        [sys.executable, "-P", "-m", "data_shards.sample_data", str(folder)],
        check=True, stdout=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip
    return folder


def _training_options(weights: str, own: bool) -> dict[str, Any]:
    if weights != "none":
        return {"weights": weights}
    training = {"weights": "none", "freeze": "none", "lr": 2e-3}
    if own:
        return {**training, "image_size": OWN_PIXELS}
    return {**training, "image_size": SAMPLE_PIXELS, "batch_size": SAMPLE_BATCH}


def _plan_text(weights: str, own: bool) -> str:
    if weights != "none":
        return f"Weights: {weights}; the backbone is frozen and the head is trained at 224 px"
    pixels = OWN_PIXELS if own else SAMPLE_PIXELS
    return f"Weights: none (random); all layers are trained, at {pixels} px; with --weights only the head is"


def _run(stack: Stack, spec: Spec) -> str:
    storage = stack.settings.storage
    request = build_request(owner=stack.settings.owner)
    run_id = submit(stack.settings, checked(stack.settings, spec), request)
    _print(f"Queued {run_id}")
    try:
        state = show_progress(storage, run_id, meanwhile=partial(stack.restart_ended, REDIS_TRIES))
    except KeyboardInterrupt:  # else another job worker of the storage would go on with it
        _print(f"\n{run_id}: {actions.cancel(stack.settings, RunPaths.of(storage, run_id), at_once=True).state}")
        raise
    if state.state != "succeeded":
        _print(logs.tail(RunPaths.of(storage, run_id).log, LOG_LINES)[0])
        raise Refused(f"{run_id} {state.state}: {state.why}; `nightshift logs {run_id}` prints the whole log")
    return run_id


def _show(settings: Settings, trained: str, scored: str) -> None:
    paths = RunPaths.of(settings.storage, scored)
    result = read_record(paths).result
    assert result is not None  # noqa: S101 -- it succeeded
    metrics = result["metrics"]
    console = Console()
    console.print(_matrix(metrics["classes"], metrics["confusion_matrix"]))
    click.echo(f"test accuracy: {figure_text(metrics['accuracy'])} on {counted(metrics['n'], 'image')}")
    click.echo(f"model:         {RunPaths.of(settings.storage, trained).best}")
    click.echo(f"training:      {RunPaths.of(settings.storage, trained).report}")
    click.echo(f"report:        {paths.report}")
    _print("next:          nightshift demo --data FOLDER --split 70/15/15, with your images in FOLDER/CLASS/")
    _print(f"or:            nightshift predict {trained} IMAGES --now")


def _matrix(classes: list[str], counts: list[list[int]]) -> Table:
    table = Table("true \\ predicted", *map(table_cell, classes), title="Confusion matrix, test split")
    for name, row in zip(classes, counts, strict=True):
        table.add_row(table_cell(name), *(str(count) for count in row))
    return table


def _print(line: str) -> None:
    echo(line, err=True)
