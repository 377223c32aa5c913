"""`nightshift shards audit`: what classifies a data set's images without looking at their subject.

The audit runs in a process of its own: it needs scikit-learn, which the command line does not import.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click import ClickException

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.completion import complete_model, complete_path
from jobs.cli.guarded_process import guarded_process
from jobs.cli.option_groups import OptionGroup, json_option, options, path_argument
from jobs.cli.predict import output_file
from jobs.cli.progress_bar import shown_progress
from jobs.cli.terminal import echo
from jobs.cli.text_table import Column, output_width, table_text
from trainer.evaluation.metric_text import figure_text

AUDIT = (sys.executable, "-P", "-m", "trainer.audit")  # -P: never import a user's own trainer.py
COLUMNS = (
    Column(title="CHECK"),
    Column(title="AUROC"),
    Column(title="95 % CI", importance=2),
    Column(title="ALARM"),
    Column(title="PROPERTY", importance=1),
)
MODEL_COLUMNS = (Column(title="MODEL"), Column(title="MODEL - CHECK"))
TWO = 2  # classes: of more, the AUROC is a mean
SPLITS = ("test", "valid", "train+valid")  # of which a model has been judged, in the order of preference
SHOWN = 20  # contradictions on the terminal; --json has all of them


@command(name="audit", example="nightshift shards audit shards/chest --html audit.html")
@path_argument("shards")
@options(
    OptionGroup(
        "Audit",
        (
            click.option("--image-size", type=click.IntRange(32, 1024), default=224, show_default=True,
                         metavar="PIXELS", help="Side of the square that the network sees, as for train."),
            click.option("--max-images", type=click.IntRange(50), default=3000, show_default=True, metavar="N",
                         help="Maximum number of images to read; from a larger data set, a random sample is drawn."),
            click.option("--processes", type=click.IntRange(1), metavar="N",
                         help="Number of decoding processes.  [default: one per CPU core]"),
            click.option("--model", metavar="MODEL", shell_complete=complete_model,
                         help="Also compare the AUROC of a model that was evaluated on SHARDS with each check, on the "
                         "same images: a run, a promoted name, a folder or an evaluation."),
        ),
    ),
    OptionGroup(
        "Output",
        (
            click.option("--html", metavar="FILE", shell_complete=complete_path,
                         help="Write an HTML page with the results."),
            json_option("Print the checks, the alarm and the sentence as JSON."),
        ),
    ),
)  # fmt: skip
def audit(shards: str, model: str | None, html: str | None, as_json: bool, **limits: Any) -> None:
    """Show what classifies the images in SHARDS without looking at their subject.

    Each of several simple classifiers sees one property only, such as the image size, the file format, the outer rim, a
    small patch, or a thumbnail. If one of them does as well as a network, the network's metrics do not show that it
    looks at the subject. Reports of later runs on this data set show the audit beside their model, and so does --model.
    """
    page = output_file(html, "--html")
    settings = Settings.read().with_storage_ready()
    wanted = {
        "shards": shards,
        "html": page,
        "storage": str(settings.storage),
        "cache_bytes": settings.shard_cache_bytes,
        "predictions": None if model is None else _predictions(settings.storage, model, shards),
        **limits,
    }
    found = _run(wanted)
    if html:
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    differences = found["model"]["differences"] if model else {}
    columns = [*COLUMNS[:4], *(MODEL_COLUMNS if model else ()), COLUMNS[4]]
    rows = [_row(check, _model_cells(differences.get(check["name"])) if model else ()) for check in found["checks"]]
    click.echo(table_text(columns, rows, output_width()))
    _print_contradictions(found["contradictions"])
    if found["images"] < found["total"]:
        click.echo(f"a random sample of {found['images']:,} of {found['total']:,} images was read", err=True)
    echo(found["sentence"])
    if model:
        echo(_model_sentence(model, found["model"]))


def _run(wanted: dict[str, Any]) -> dict[str, Any]:
    """Run the audit in a process of its own and return its result as JSON values."""
    with (
        shown_progress("reading") as on_progress,
        guarded_process(AUDIT, wanted, stdout=subprocess.PIPE) as process,
    ):
        return _answer(process, on_progress)


def _answer(process: "subprocess.Popen[str]", on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Return what the audit finds; it tells its progress on stdout."""
    assert process.stdout is not None  # noqa: S101 -- for the type checker
    for line in process.stdout:
        message = json.loads(line)
        if "error" in message:
            raise ClickException(message["error"])
        if "audit" in message:
            found: dict[str, Any] = message["audit"]
            return found
        on_progress(message["done"], message["total"])
    raise ClickException(f"the audit ended with exit code {process.wait()}; its output is above")


def _row(check: dict[str, Any], of_model: tuple[str, ...]) -> tuple[str, ...]:
    interval = "" if check["low"] is None else f"{figure_text(check['low'], 3)} to {figure_text(check['high'], 3)}"
    alarm = "yes" if check["alarm"] else "no"
    return check["name"], figure_text(check["auroc"], 3), interval, alarm, *of_model, check["explanation"]


def _model_cells(beside: dict[str, Any] | None) -> tuple[str, str]:
    if beside is None:
        return "-", "-"
    low_high = beside["interval"]
    interval = f" ({low_high[0]:+.3f} to {low_high[1]:+.3f})" if low_high else ""
    return figure_text(beside["model"], 3), f"{beside['difference']:+.3f}{interval}"


def _model_sentence(model: str, found: dict[str, Any]) -> str:
    """Return what the columns about a model are, in one sentence."""
    counts = sorted({one["images"] for one in found["differences"].values()})
    if not counts:
        return f"{model} was evaluated on none of the images that the audit has read"
    of_mean = "mean AUROC over the classes" if len(found["classes"]) > TWO else "AUROC"
    images = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return (
        f"{model}: its {of_mean} on {images} images of the {found['split']} split, and the difference to that of the "
        "check on the same images, with its 95 % interval. One that contains 0 does not show that the model knows more."
    )


def _predictions(storage: Path, model: str, shards: str) -> str:
    """Return the file of a model's newest predictions on the data set, of the test split if there are such.

    Raises:
        CheckpointError: There is no such model, or it was not evaluated on the data set.
    """
    # These take a moment, and an audit without a model does not wait for them.
    from data_shards.index import read_index  # noqa: PLC0415
    from jobs.runs.evaluations import evaluations_of, find_model  # noqa: PLC0415
    from trainer.errors import CheckpointError  # noqa: PLC0415

    digest, found = read_index(shards).digest, find_model(storage, model)
    splits = SPLITS if found.evaluation is None else (found.evaluation.about.split,)
    for evaluation in (one for split in splits for one in evaluations_of(storage, found, split)):
        if evaluation.about.data == digest:
            return str(evaluation.paths.predictions)
    command_line = f"nightshift evaluate {shlex.quote(model)} {shlex.quote(shards)} --wait"
    raise CheckpointError(f"{model} has no evaluation of {shards}; run: {command_line}")


def _print_contradictions(pairs: list[dict[str, Any]]) -> None:
    if not pairs:
        return
    click.echo(f"images that look alike and have different labels ({len(pairs)}):")
    for pair in pairs[:SHOWN]:
        echo(f"  {pair['first']} ({pair['first_label']}) and {pair['second']} ({pair['second_label']})")
    if len(pairs) > SHOWN:
        click.echo(f"  and {len(pairs) - SHOWN} more")
