"""`nightshift search`, `trials` and `best`."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click
from click.core import ParameterSource
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cluster.files import read_json
from cluster.settings import Settings
from cluster.windows import TimeWindow
from jobs.cli.follow import describe, follow, show_progress
from jobs.cli.leaderboard import as_table, published_best, rows_of, table_of
from jobs.cli.option_types import Moment
from jobs.cli.options import HOW, WHEN, WHERE, default, option, options, take_request
from jobs.cli.train import STEADY, is_only_asked, warn_if_nobody_works
from jobs.errors import Refused
from jobs.queue.checks import checked, weights_file
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.state import RunState
from trainer.errors import SpecError
from trainer.specs import SearchSpec, TrainOptions, build
from trainer.specs.search_space import Range, Space, parse_dimension

LOCALTIME = Path("/etc/localtime")
SHOWN = 12  # trials in the live leaderboard
# What trials must share to stand on one leaderboard.
SHARED = ("shards", "epochs", "image_size", "weights", "precision", "class_weights", "best_by", "patience", "repeats",
          "norms", "head_epochs", "ema")  # fmt: skip


def _spelled(name: str) -> str:
    dimension = getattr(Space(), name)
    if isinstance(dimension, Range):
        return f"{dimension.low:g}:{dimension.high:g}"
    return ",".join(map(str, dimension)) if dimension else str(default(TrainOptions, name))


def _varied(name: str, metavar: str, help_text: str) -> Any:
    return click.option(f"--{name.replace('_', '-')}", name, default=_spelled(name), show_default=True,
                        metavar=metavar, help=help_text)  # fmt: skip


SPACE = ("lr", "dropout", "head_width", "weight_decay", "batch_size", "freeze", "augment_strength")
SEARCHING = (
    click.option("--trials", default=str(default(SearchSpec, "trials")), show_default=True, metavar="N|+N",
                 help="Configurations to try; +N more with --extend."),
    _varied("lr", "LOW:HIGH", "Peak learning rate of the head: a range, choices with commas, or one value."),
    _varied("dropout", "LOW:HIGH", "Dropout before the last layer, likewise."),
    _varied("head_width", "W,W,...", "Widths of the head's first layer: choices, or one value."),
    _varied("weight_decay", "LOW:HIGH", "Weight decay of the head: a range, choices, or one value."),
    _varied("batch_size", "B,B,...", "Images per step over all workers together: choices, or one value."),
    _varied("freeze", "F,F,...", "The part of the backbone that does not learn: choices, or one value."),
    _varied("augment_strength", "LOW:HIGH", "How far --augment goes, from 0 to 4: a range, choices, or one value."),
    option(SearchSpec, "algorithm", type=click.Choice(["tpe", "random", "grid"]), help="What comes next."),
    click.option("--concurrency", type=int, help="Trials at once; by default what the machine holds."),
    click.option("--early-stopping/--no-early-stopping", default=None,
                 help="End trials that lag behind; by default where they are long enough."),
    click.option("--seeds", "repeats", type=int, default=default(SearchSpec, "repeats"), show_default=True,
                 help="Trainings of each configuration, ranked by their mean."),
    click.option("--metric", "--best-by", "best_by", default=default(SearchSpec, "best_by"), show_default=True,
                 type=click.Choice(["loss", "accuracy", "balanced_accuracy", "auroc"]),
                 help="The validation metric that ranks; loss is best when low, the others when high."),
    option(SearchSpec, "max_failures", type=int, help="Fail when more trials than this have failed."),
    click.option("--until", type=Moment(), help="End by then: 07:00 or 2026-11-24T07:00."),
    click.option("--refit/--no-refit", default=default(SearchSpec, "refit"), show_default=True,
                 help="At the end train the best once more, on train and valid together, and publish that."),
    click.option("--extend", metavar="ID", help="Go on from another search's trials, with its options."),
)  # fmt: skip


@click.command()
@click.argument("shards", required=False)
@options(STEADY, SEARCHING, WHERE, WHEN, HOW)
@click.pass_context
def search(ctx: click.Context, /, shards: str | None, **given: Any) -> None:
    r"""Search the best learning rate, dropout and head width on SHARDS and print the run id.

    \b
        nightshift search shards/chest --trials 64 --epochs 20 --until 07:00
        nightshift search --extend search-20261123-203000-a1b2c3 --trials +50 --lr 1e-4:1e-3
    """
    settings = Settings.read()
    waits, dry_run = given.pop("waits"), given.pop("dry_run")
    window, seconds = given["window"], given["max_duration_seconds"]
    given["max_duration_seconds"] = None  # a search ends in time by itself, with what it has
    wanted = take_request(settings, given)
    limits = {"window": window, "max_duration_seconds": seconds, "timezone": _zone() if window else None}
    said = {name for name in given if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    wish = _wish(settings, shards, given | limits, said)
    _refuse_shut_night(wish, wanted.at)
    spec = checked(settings, wish)
    if is_only_asked(spec, wanted, dry_run=dry_run):
        return
    run_id = submit(settings, spec, wanted)
    click.echo(run_id)
    warn_if_nobody_works(settings)
    if waits:
        state = _watch(settings.storage, run_id, wish.best_by)
        sys.exit(0 if state.state == "succeeded" else 1)
    click.echo(
        f"Queued. `nightshift trials {run_id}` shows the leaderboard, `nightshift wait {run_id}` waits.", err=True
    )


@click.command()
@click.argument("search_id", metavar="SEARCH")
@click.option("--sort", default="metric", show_default=True, help="metric (the best first), or a column.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def trials(search_id: str, sort: str, as_json: bool) -> None:
    r"""Show the leaderboard of a search, also while it runs.

    \b
        nightshift trials search-20261123-203000-a1b2c3 --sort seconds
    """
    paths = run_state.find(Settings.read().storage, search_id)
    rows, metric = rows_of(paths), table_of(paths).metric
    if sort != "metric":
        if rows and sort not in rows[0]:
            raise Refused(f"{sort!r} is no column; sort by metric, {', '.join(rows[0])}")
        rows.sort(key=lambda row: (row[sort] is None, row[sort]))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    Console(width=None if sys.stdout.isatty() else 200).print(as_table(rows, metric))


@click.command()
@click.argument("search_id", metavar="SEARCH")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def best(search_id: str, as_json: bool) -> None:
    r"""Show the best trial of a search and its published model, also while it runs.

    \b
        nightshift best search-20261123-203000-a1b2c3
    """
    paths = run_state.find(Settings.read().storage, search_id)
    metric, published = table_of(paths).metric, published_best(paths)
    if published is None:
        raise Refused(f"{paths.run_id} has published no model yet; `nightshift trials {paths.run_id}` shows its trials")
    result = read_json(paths.result) if paths.result.exists() else None
    found = {
        "search": paths.run_id,
        **{name: published[name] for name in ("trial", "epoch", "config")},
        "metric": {"name": metric, "value": published["value"]},
        "refit": published.get("refit"),
        "checkpoint": str(paths.best),
        "result": None if result is None else result["metrics"],
    }
    click.echo(json.dumps(found, indent=2) if as_json else _best_as_text(found))


def _wish(settings: Settings, shards: str | None, given: dict[str, Any], said: set[str]) -> SearchSpec:
    """Return the spec that the options mean."""
    if given["until"] is not None and given["until"] <= datetime.now(UTC):
        raise SpecError(f"--until {given['until']:%Y-%m-%d %H:%M} is in the past; give a later time")
    if given["extend"] is not None:
        return _extended(settings, shards, given, said)
    if shards is None:
        raise click.UsageError("Missing argument 'SHARDS'.")
    count = given["trials"]
    if not count.isdecimal():
        raise SpecError(f"--trials {count!r} is no number; write --trials 64, or +50 with --extend")
    return build(SearchSpec, **_with_space(given, set(SPACE)) | {"shards": shards, "trials": int(count)})


def _refuse_shut_night(spec: SearchSpec, at: datetime | None) -> None:
    """Refuse a search that would be over before its window opens, or before it starts."""
    if spec.until is None:
        return
    now = datetime.now(ZoneInfo(spec.timezone) if spec.timezone else None).astimezone()
    start = now if at is None else max(now, at)
    opens = TimeWindow.parse(spec.window).opens(start) if spec.window else start
    if opens >= spec.until:
        what = f"window {spec.window} never opens" if opens > start else f"--at {start:%Y-%m-%d %H:%M} is not"
        raise SpecError(f"{what} before --until {spec.until:%Y-%m-%d %H:%M}; give a later --until")


def _with_space(given: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return the options with those of the space parted into what is fixed and what varies."""
    fixed, space = dict(given), dict[str, Any]()
    for name in names:
        try:
            value = parse_dimension(name, fixed.pop(name))
        except ValueError as error:
            raise SpecError(str(error)) from error
        space[name] = None if isinstance(value, str) else value
        if isinstance(value, str):
            fixed[name] = value
    return fixed | {"space": space}


def _extended(settings: Settings, shards: str | None, given: dict[str, Any], said: set[str]) -> SearchSpec:
    """Return the spec of a search that takes over another's trials: its options, but for what was said anew."""
    paths = run_state.find(settings.storage, given["extend"])
    told = [trial.config for trial in table_of(paths).reported]
    known = len(told)
    if not run_state.read_state(paths).has_ended:
        raise Refused(f"{paths.run_id} has not ended; cancel it first, or wait for it")
    before = {name: value for name, value in read_json(paths.spec).items() if name != "kind"}
    for name in SHARED:
        now, then = given.get(name), before.get(name, default(SearchSpec, name))
        if name in said and (weights_file(str(now)) if name == "weights" else now) != then:
            raise SpecError(f"--{name.replace('_', '-')} {now} cannot join {paths.run_id}, which has {then}")
    if shards is not None and str(Path(shards).expanduser().absolute()) != before["shards"] != shards:
        raise SpecError(f"{shards} cannot join {paths.run_id}, whose trials ran on {before['shards']}")
    count = given["trials"]
    if not count.removeprefix("+").isdecimal():
        raise SpecError(f"--trials {count!r} is no number; write --trials +50")
    total = known + int(count) if count.startswith("+") or "trials" not in said else int(count)
    if total <= known:
        raise SpecError(f"--trials {count} adds none to the {known} of {paths.run_id}; write --trials +{count}")
    anew = _with_space({name: given[name] for name in said}, said & set(SPACE))
    limits = {name: given[name] for name in ("until", "window", "timezone", "max_duration_seconds")}
    options_now = {**before, **anew, **limits, "space": {**before["space"], **anew["space"]}}
    spec = build(SearchSpec, **options_now | {"trials": total, "extend": paths.run_id})
    untried = len(spec.space.untried(told)) if spec.algorithm == "grid" else total
    if total - known > untried:
        raise SpecError(
            f"{total - known} trials more are too many for a grid with {untried} untried points; "
            "use fewer, or more points as in --lr 1e-5:1e-2:9"
        )
    return spec


def _watch(storage: Path, run_id: str, metric: str) -> RunState:
    """Follow a search with its leaderboard on a terminal, with plain lines elsewhere; return its last state."""
    paths = run_state.find(storage, run_id)
    console = Console(stderr=True)
    if not console.is_terminal:
        state = show_progress(storage, run_id)
        Console(stderr=True, width=200).print(as_table(rows_of(paths), metric))
        return state
    with Live(console=console, refresh_per_second=4) as live:
        for state, progress in follow(storage, run_id):
            rows = rows_of(paths)
            live.update(Group(as_table(rows[:SHOWN], metric), Text(f"{run_id}: {describe(state, progress)}")))
    return state


def _best_as_text(found: dict[str, Any]) -> str:
    metric = found["metric"]
    lines = [
        f"trial {found['trial']}, epoch {found['epoch']}: {metric['name']} {metric['value']:.5g} on the valid split",
        "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                  for name, value in found["config"].items()),
        f"model {found['checkpoint']}",
    ]  # fmt: skip
    if found["refit"]:
        lines.append(f"refitted on {' and '.join(found['refit']['splits'])}, {found['refit']['epochs']} epochs")
    if found["result"]:
        figures = found["result"]
        lines.append(f"{figures['split']}: accuracy {figures['accuracy']:.4f}  auroc {figures['auroc'] or 0:.4f}")
    return "\n".join(lines)


def _zone() -> str | None:
    """Return the IANA name of this machine's zone, in which a window is meant; None where it has none."""
    if not LOCALTIME.is_symlink():
        return None
    _, found, name = str(LOCALTIME.resolve()).partition("zoneinfo/")
    return name if found else None
