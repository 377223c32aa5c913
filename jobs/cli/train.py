"""`nightshift train` and `nightshift evaluate`: options, a checked spec, the queue."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.follow import show_progress
from jobs.cli.option_types import BatchSize
from jobs.cli.options import HOW, WHEN, WHERE, option, options, take_request
from jobs.queue.checks import after_its_model, checked
from jobs.queue.connection import connect
from jobs.queue.submit import submit
from jobs.queue.worker_list import live_workers
from jobs.runs.request import JobRequest
from trainer.specs import EvaluateSpec, Spec, TrainSpec, build

SEARCHABLE = (  # `search` has options of its own in their place
    option(
        TrainSpec,
        "batch_size",
        type=BatchSize(),
        help="Images per step over all workers together; auto is 32 with --accumulate.",
    ),
    option(TrainSpec, "lr", type=float, help="Peak learning rate of the head."),
    option(TrainSpec, "weight_decay", type=float, help="Weight decay of the head."),
    option(TrainSpec, "dropout", type=float, help="Dropout before the last layer."),
    option(TrainSpec, "head_width", type=int, help="Width of the head's first layer."),
    option(TrainSpec, "freeze", metavar="all|none|STAGES", help="The part of the backbone that does not learn."),
    option(TrainSpec, "augment_strength", type=float, help="How far --augment turns, shifts and zooms, from 0 to 4."),
)
STEADY = (
    click.option("--accumulate", is_flag=True, help="Take a step that does not fit into a GPU's memory in parts."),
    option(TrainSpec, "epochs", type=int, help="Passes over the training split."),
    option(TrainSpec, "weights", metavar="imagenet|none|FILE", help="Where the backbone begins."),
    option(TrainSpec, "norms", type=click.Choice(["auto", "kept", "batch"]),
           help="Statistics of the backbone's batch norms as it learns: of its weights, or of each batch."),
    option(TrainSpec, "head_epochs", type=int, help="First epochs that train the head alone, unless --freeze all."),
    option(TrainSpec, "ema", type=float, metavar="DECAY", help="Publish a moving average of the weights, as 0.999."),
    option(TrainSpec, "image_size", type=int, help="Side of the square that the network sees, in pixels."),
    click.option("--augment/--no-augment", default=TrainSpec.model_fields["augment"].default, show_default=True),
    option(TrainSpec, "precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Arithmetic of the backbone."),
    click.option("--class-weights/--no-class-weights", default=None, help="Weigh classes; by default when unbalanced."),
    click.option("--patience", type=int, help="Stop after so many epochs without a better one."),
    click.option("--cache/--no-cache", default=TrainSpec.model_fields["cache"].default, show_default=True,
                 help="Keep the features of a frozen backbone."),
    option(TrainSpec, "seed", type=int, help="Of everything that is drawn."),
)  # fmt: skip
TRAINING = (
    *STEADY,
    *SEARCHABLE,
    option(
        TrainSpec, "best_by", type=click.Choice(["loss", "accuracy", "balanced_accuracy", "auroc"]),
        help="The validation metric that chooses the published model.",
    ),
)  # fmt: skip


@click.command()
@click.argument("shards")
@options(TRAINING, WHERE, WHEN, HOW)
def train(shards: str, **given: Any) -> None:
    r"""Fine-tune EfficientNet-B0 on SHARDS and print the run id.

    \b
        nightshift train shards/chest --epochs 5 --workers 4
    """
    queue_or_show(TrainSpec, given, shards=shards)


@click.command()
@click.argument("model")
@click.argument("shards")
@option(EvaluateSpec, "split", help="The split that is scored.")
@click.option("--positive", metavar="CLASS", help="The class whose misses are counted.")
@click.option("--min-sensitivity", type=float, help="Choose the threshold on the validation split for this.")
@option(EvaluateSpec, "batch_size", type=int, help="Images per step over all workers together.")
@options(WHERE, WHEN, HOW)
def evaluate(model: str, shards: str, **given: Any) -> None:
    r"""Score MODEL (a run, a search's best, or a folder) on one split of SHARDS and print the run id.

    \b
        nightshift evaluate train-20261123-203000-a1b2c3 shards/chest --positive covid
    """
    queue_or_show(EvaluateSpec, given, model=model, shards=shards)


@dataclass
class Captured:
    """What a command would submit, for one that only wants to know: put it into the click context as its object."""

    spec: Spec | None = None
    wanted: JobRequest | None = None


def queue_or_show(kind: type[Spec], given: dict[str, Any], **more: Any) -> None:
    """Build and check a spec from a command's options, then queue it, or print it when that is all that is wanted."""
    settings = Settings.read()
    waits, dry_run = given.pop("waits"), given.pop("dry_run")
    wanted = take_request(settings, given)
    spec = checked(settings, build(kind, **given, **more))
    if is_only_asked(spec, wanted, dry_run=dry_run):
        return
    run_id = submit(settings, spec, after_its_model(settings, wanted, spec))
    click.echo(run_id)
    warn_if_nobody_works(settings)
    if waits:
        state = show_progress(settings.storage, run_id)
        sys.exit(0 if state.state == "succeeded" else 1)
    click.echo(f"Queued. `nightshift logs -f {run_id}` follows it, `nightshift wait {run_id}` waits.", err=True)


def is_only_asked(spec: Spec, wanted: JobRequest, *, dry_run: bool) -> bool:
    """Hand the checked wish to whoever wants to see it and not queue it, and return whether somebody does."""
    captured = click.get_current_context().find_object(Captured)
    if captured:
        captured.spec, captured.wanted = spec, wanted
    elif dry_run:
        click.echo(json.dumps(spec.to_json(), indent=2))
    return bool(captured) or dry_run


def warn_if_nobody_works(settings: Settings) -> None:
    """Say so when no job worker is there to take what was queued."""
    with connect(settings) as connection:
        if not live_workers(connection):
            click.echo("No job worker is at work yet; `nightshift up` starts one on this machine.", err=True)
