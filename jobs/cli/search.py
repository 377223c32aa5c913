"""`nightshift search`: the command and its options; `search_spec.py` makes the spec."""

from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.windows import local_zone_name
from jobs.cli.command import command
from jobs.cli.config_file import CONFIG
from jobs.cli.follow import follow, show_progress
from jobs.cli.option_groups import Decorator, OptionGroup, options, path_argument
from jobs.cli.option_types import Duration, Moment
from jobs.cli.options import MAX_DURATION, OUTPUT, WHEN, WHERE, default, option, take_request
from jobs.cli.run_view import RunView
from jobs.cli.search_spec import search_spec
from jobs.cli.submission import submit_spec
from jobs.cli.terminal import waits_for_storage
from jobs.cli.training_options import (
    AUGMENT_STRENGTH,
    BATCH_SIZE,
    BEST_BY,
    DATA_AND_MODEL,
    DROPOUT,
    FREEZE,
    HEAD_WIDTH,
    LR,
    OPTIMIZATION,
    VALIDATION,
    WEIGHT_DECAY,
)
from jobs.cli.trials import leaderboard_text, table_of
from jobs.runs.state import RunState
from jobs.runs.trial_rows import rows_of
from trainer.search.choice_text import excluded_text
from trainer.specs import SearchSpec, TrainOptions
from trainer.specs.search_space import Range, Space

GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)  # by a person; the latter from --config
SHOWN = 12  # trials in the live leaderboard


def _written(name: str) -> str:
    """Return the default of a searched option as a person would type it."""
    dimension = getattr(Space(), name)
    if isinstance(dimension, Range):
        return f"{dimension.low:g}:{dimension.high:g}"
    return ",".join(map(str, dimension)) if dimension else str(default(TrainOptions, name))


def _searched(name: str, metavar: str, help_text: str) -> Decorator:
    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, name, default=_written(name), show_default=True, metavar=metavar, help=help_text)


SEARCH = OptionGroup(
    "Search",
    (
        click.option(
            "--trials", default=str(default(SearchSpec, "trials")), show_default=True, metavar="N|+N",
            help="Number of trials (configurations to train); with --extend, +N adds N trials.",
        ),
        option(SearchSpec, "algorithm", "Search algorithm."),
        option(
            SearchSpec, "concurrency",
            "Trials that run at the same time.  [default: as many as the CPUs or GPUs allow; of heads that train "
            "together at most a quarter of --trials]",
            metavar="N",
        ),
        click.option(
            "--early-stopping/--no-early-stopping", default=None,
            help="Stop trials that are worse than others at the same epoch (ASHA).  [default: on if --epochs >= 6]",
        ),
        option(
            SearchSpec, "repeats",
            "Number of random seeds per configuration; trials are ranked by the mean over the seeds.",
            "--seeds", metavar="N",
        ),
        option(
            SearchSpec, "folds",
            "Rank by cross-validation: train each configuration as `train --folds K` does, on the features of a frozen "
            "backbone and on the same folds of train and valid. The spread of a trial is the standard deviation over "
            "its folds. The published model is that of `train --folds K` with the options of the chosen trial.",
            metavar="K",
        ),
        option(
            SearchSpec, "fold_repeats",
            "With --folds, divide into folds R times; trials are ranked by the mean over the repeats.",
            "--repeats", metavar="R",
        ),
        option(
            SearchSpec, "refit",
            "After the search, train the chosen configuration on the train and valid splits and publish that model.",
        ),
        option(
            SearchSpec, "choose",
            "Trial to publish: default keeps the trial with the defaults of `train` unless the best one is better by "
            "more than one standard error of their difference on the same images; best takes the best trial.",
        ),
        click.option(
            "--extend", metavar="ID",
            help="Start from the trials and options of another search, which must have ended.",
        ),
        option(
            SearchSpec, "max_failures", "Maximum number of failed trials; the search fails if there are more.",
            metavar="N",
        ),
    ),
)  # fmt: skip
SPACE = OptionGroup(
    "Search space: a range LOW:HIGH (in a grid also LOW:HIGH:POINTS), choices A,B,C, or one fixed value",
    (
        _searched("lr", "RANGE", "Peak learning rate of the head."),
        _searched("dropout", "RANGE", "Dropout probability before the output layer."),
        _searched("head_width", "CHOICES", "Units of the hidden layer of the head; multiples of 4."),
        _searched("weight_decay", "RANGE", "Weight decay of the head."),
        _searched("batch_size", "CHOICES", "Global batch size (images per step, over all workers)."),
        _searched(
            "freeze", "CHOICES", "Backbone layers to freeze: all, none, or N for the stem and the first N of 7 stages."
        ),
        _searched("augment_strength", "RANGE", "Strength of --augment, from 0 to 4."),
    ),
)
METRIC = OptionGroup(
    "Validation",
    (
        option(
            SearchSpec, "best_by",
            "Metric on the valid split, or with --folds out of fold, that ranks trials: loss is minimized, the others "
            "are maximized.",
            "--metric", "--best-by",
        ),
        *VALIDATION.without(BEST_BY).options,
    ),
)  # fmt: skip
UNTIL = click.option(
    "--until", type=Moment(),
    help="Stop the search at this time, such as 07:00 or 2026-11-24T07:00; "
    "no trial starts if it cannot finish in time.",
)  # fmt: skip

SEARCH_DURATION = click.option(
    "--max-duration", "max_duration_seconds", type=Duration(),
    help="Stop the search this long after its first start, pauses included, such as 8h; it succeeds with the trials "
    "that it has.  [default: no limit]",
)  # fmt: skip


def _refuse_linear_head(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value not in (None, "mlp"):
        raise click.UsageError(
            f"a search varies options of the mlp head, and --head {value} has none of them; "
            f"use `nightshift train SHARDS --head {value}`"
        )


MLP_HEAD = click.option(
    "--head",
    expose_value=False,
    hidden=True,
    callback=_refuse_linear_head,
    help="Only mlp: a search varies its options.",
)


@command(
    example="nightshift search shards/chest --trials 64 --epochs 20 --metric auroc --until 07:00\n"
    "nightshift search --extend search-20261123-203000-a1b2c3 --trials +50 --lr 1e-4:1e-3"
)
@path_argument("shards", required=False)
@MLP_HEAD
@options(
    CONFIG,
    SEARCH,
    SPACE,
    DATA_AND_MODEL.without(FREEZE, HEAD_WIDTH, DROPOUT, AUGMENT_STRENGTH),
    OPTIMIZATION.without(BATCH_SIZE, LR, WEIGHT_DECAY),
    METRIC,
    WHERE,
    OptionGroup(WHEN.heading, (UNTIL, SEARCH_DURATION, *WHEN.without(MAX_DURATION).options)),
    OUTPUT,
)
@click.pass_context
def search(ctx: click.Context, /, shards: str | None, **given: Any) -> None:
    """Tune learning rate, dropout and head width on SHARDS and print the run id.

    SHARDS is the output folder of `nightshift shards pack`, or its URL. The default with --extend is the data of the
    search that is extended.
    """
    settings = Settings.read()
    how = {name: given.pop(name) for name in ("waits", "dry_run", "as_json")}
    window, seconds = given["window"], given["max_duration_seconds"]
    given["max_duration_seconds"] = None  # a search ends itself at its limit, and succeeds with the trials it has
    request = take_request(settings, given)
    limits = {"window": window, "max_duration_seconds": seconds, "timezone": local_zone_name() if window else None}
    typed = {name for name in given if ctx.get_parameter_source(name) in GIVEN}
    spec = search_spec(settings, shards, given | limits, typed, starts_at=request.at)
    if spec.choose == "default" and (excluded := spec.excluded_defaults):
        why = excluded_text(excluded, spec.algorithm)
        click.echo(f"no trial has the defaults of train: {why}; the best trial will be published", err=True)
    submit_spec(
        settings,
        spec,
        request,
        **how,
        follow=partial(follow_search, metric=spec.best_by),
        next_command="`nightshift trials {run_id}` shows the leaderboard",
    )


def follow_search(storage: Path, run_id: str, *, metric: str) -> RunState:
    """Follow a search, with its leaderboard on a terminal and plain lines elsewhere; return its last state."""
    paths = RunPaths.of(storage, run_id)
    console = Console(stderr=True)
    if not console.is_terminal:
        state = show_progress(storage, run_id)
        click.echo(leaderboard_text(rows_of(paths, table_of(paths)), metric, None), err=True)
        return state
    view, said, patience = RunView(storage), set[str](), waits_for_storage()

    def shown(state: RunState, progress: dict[str, Any]) -> Group:
        rows = rows_of(paths, table_of(paths, said=said))
        table = leaderboard_text(rows[:SHOWN], metric, console.width)
        return Group(Text(table), view.updated(state, progress, console.width))

    with Live(console=console, refresh_per_second=4) as live:
        for state, progress in follow(storage, run_id):
            live.update(patience.call(partial(shown, state, progress)))
    return state
