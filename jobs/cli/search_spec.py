"""The spec of a search from its options: fixed values, the search space, and the trials of a search it extends."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cluster.files import read_json_object
from cluster.settings import Settings
from cluster.windows import TimeWindow, local_now
from jobs.cli.options import default
from jobs.cli.trials import table_of
from jobs.errors import Refused
from jobs.queue.checks import weights_file
from jobs.runs import state as run_state
from trainer.errors import SpecError
from trainer.specs import SearchSpec, build
from trainer.specs.command_text import RENAMED
from trainer.specs.search_space import parse_dimension

SEARCHABLE = frozenset({"lr", "dropout", "head_width", "weight_decay", "batch_size", "freeze", "augment_strength"})
# Options that all trials of one leaderboard must share.
SHARED = ("shards", "epochs", "image_size", "weights", "precision", "class_weights", "best_by", "patience", "repeats",
          "folds", "fold_repeats", "norms", "head_epochs", "ema")  # fmt: skip


def search_spec(
    settings: Settings, shards: str | None, given: dict[str, Any], typed: set[str], *, starts_at: datetime | None
) -> SearchSpec:
    """Return the checked spec.

    Args:
        settings: Of this machine.
        shards: The data, None with --extend.
        given: The options.
        typed: The names of the options that the user typed; the rest are defaults.
        starts_at: The earliest start.

    Raises:
        SpecError: An option is out of range, or the options contradict each other.
        Refused: The search to extend has not ended.
    """
    if given["until"] is not None and given["until"] <= datetime.now(UTC):
        raise SpecError(f"--until {given['until']:%Y-%m-%d %H:%M} is in the past; give a later time")
    if given["extend"] is not None:
        spec = _extended(settings, shards, given, typed)
    elif shards is None:
        raise click.UsageError("Missing argument 'SHARDS'.")
    else:
        spec = _new(shards, given)
    _refuse_to_end_before_start(spec, starts_at)
    return spec


def _new(shards: str, given: dict[str, Any]) -> SearchSpec:
    count = given["trials"]
    if not count.isdecimal():
        raise SpecError(f"--trials {count!r} is not a number; write --trials 64, or +50 with --extend")
    return build(SearchSpec, **_with_space(given, SEARCHABLE) | {"shards": shards, "trials": int(count)})


def _extended(settings: Settings, shards: str | None, given: dict[str, Any], typed: set[str]) -> SearchSpec:
    """Return the spec of a search that continues from another's trials: its options, except for those typed."""
    paths = run_state.find(settings.storage, given["extend"])
    configs = [trial.config for trial in table_of(paths).extendable]
    if not run_state.read_state(paths).has_ended:
        raise Refused(f"{paths.run_id} has not ended; cancel it first, or wait for it")
    before = {name: value for name, value in read_json_object(paths.spec).items() if name != "kind"}
    _refuse_other_conditions(paths.run_id, shards, given, before, typed)
    total = _total_trials(paths.run_id, given["trials"], len(configs), is_typed="trials" in typed)
    changed = _with_space({name: given[name] for name in typed}, SEARCHABLE & typed)
    limits = {name: given[name] for name in ("until", "window", "timezone", "max_duration_seconds")}
    varied = [name for name, dimension in changed["space"].items() if dimension is not None]
    before = {name: value for name, value in before.items() if name not in varied}  # the default trial has the default
    merged = {**before, **changed, **limits, "space": {**before["space"], **changed["space"]}}
    spec = build(SearchSpec, **merged | {"trials": total, "extend": paths.run_id})
    added = total - len(configs)
    untried = len(spec.space.untried(configs)) if spec.algorithm == "grid" else added
    if added > untried:
        raise SpecError(
            f"{added} more trials are too many for a grid with {untried} untried points; "
            "use fewer, or more points as in --lr 1e-5:1e-2:9"
        )
    return spec


def _refuse_other_conditions(
    run_id: str, shards: str | None, given: dict[str, Any], before: dict[str, Any], typed: set[str]
) -> None:
    """Refuse options that would make the trials of two searches incomparable.

    Raises:
        SpecError: One differs.
    """
    for name in (*SHARED, "seed") if before.get("folds") else SHARED:  # the seed divides the images into folds
        now, then = given.get(name), before.get(name, default(SearchSpec, name))
        if name in typed and (weights_file(str(now)) if name == "weights" else now) != then:
            flag, has = RENAMED.get(name, name).replace("_", "-"), "none" if then is None else then
            raise SpecError(f"--{flag} {now} cannot extend {run_id}, which has {has}")
    if shards is not None and str(Path(shards).expanduser().absolute()) != before["shards"] != shards:
        raise SpecError(f"{shards} cannot extend {run_id}, whose trials ran on {before['shards']}")


def _total_trials(run_id: str, count: str, known: int, *, is_typed: bool) -> int:
    if not count.removeprefix("+").isdecimal():
        raise SpecError(f"--trials {count!r} is not a number; write --trials +50")
    total = known + int(count) if count.startswith("+") or not is_typed else int(count)
    if total <= known:
        raise SpecError(f"--trials {count} adds none to the {known} of {run_id}; write --trials +{count}")
    return total


def _with_space(given: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return the options with the searchable ones divided into fixed values and the search space."""
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


def _refuse_to_end_before_start(spec: SearchSpec, starts_at: datetime | None) -> None:
    """Refuse a search whose --until is before its --at or before its window opens.

    Raises:
        SpecError: It is.
    """
    if spec.until is None:
        return
    now = local_now(spec.timezone)
    start = now if starts_at is None else max(now, starts_at)
    opens = TimeWindow.parse(spec.window).opens(start) if spec.window else start
    if opens >= spec.until:
        what = f"window {spec.window} never opens" if opens > start else f"--at {start:%Y-%m-%d %H:%M} is not"
        raise SpecError(f"{what} before --until {spec.until:%Y-%m-%d %H:%M}; give a later --until")
