"""Groups of options that several commands share. Types, choices and defaults come from the fields of the specs."""

from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel

from cluster.settings import Settings
from cluster.windows import local_zone_name
from jobs.cli.completion import complete_run
from jobs.cli.option_groups import Decorator, OptionGroup, json_option
from jobs.cli.option_types import Duration, GpusPerWorker, Moment, WindowOfDay
from jobs.errors import InvalidOption
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest, build_request
from trainer.specs import TrainSpec


def default(spec: type[BaseModel], field: str) -> Any:
    """Return the default of a spec's field."""
    return spec.model_fields[field].default


def option(spec: type[BaseModel], field: str, help_text: str, *names: str, **more: Any) -> Decorator:
    """Return the option of a spec's field, with the field's type, choices and default.

    Args:
        spec: The spec.
        field: Its field.
        help_text: The text of the option in `--help`.
        names: What the option is called, if not `--field`.
        more: What else `click.option` takes.
    """
    flag = field.replace("_", "-")
    kind = _click_type(spec.model_fields[field].annotation)
    if kind is bool:
        kind, names = None, names or (f"--{flag}/--no-{flag}",)
    choices = {} if kind is None else {"type": kind}
    given = {"default": default(spec, field), "show_default": True, **choices, **more}
    return click.option(*(names or (f"--{flag}",)), field, help=help_text, **given)


def _click_type(annotation: Any) -> Any:
    """Return click's type of a field: a choice for a Literal, the plain type for the rest; None and bounds dropped."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(member for member in get_args(annotation) if member is not NoneType)
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return click.Choice(get_args(annotation)) if get_origin(annotation) is Literal else annotation


NAME = click.option("--name", help="Unique name of the run; commands accept it instead of the run id.")
TAG = click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="Tag, for `nightshift list --tag`; can be repeated."
)
NOTE = click.option("--note", metavar="TEXT", help="Note, which `nightshift show` prints.")
MAX_DURATION = click.option(
    "--max-duration",
    "max_duration_seconds",
    type=Duration(),
    help="Time limit of each attempt, such as 8h; then it saves a checkpoint, and the run fails.  [default: no limit]",
)
WORKERS = option(TrainSpec, "workers", "Number of Ray Train workers (data-parallel processes).", metavar="N")
TRAINING_WORKERS = option(
    TrainSpec, "workers",
    "Number of Ray Train workers (data-parallel processes).  With --freeze all, one of them trains the head, and the "
    "others only compute features.",
    metavar="N",
)  # fmt: skip
MIN_WORKERS = option(
    TrainSpec, "min_workers",
    "On a Ray cluster: start with N workers or more, and continue with N or more when machines leave; new machines are "
    "used within a minute or two.  [default: always --workers]",
    metavar="N",
)  # fmt: skip
WHERE = OptionGroup(
    "Where",
    (
        WORKERS,
        option(
            TrainSpec, "gpus_per_worker", "GPUs per worker; auto is 1 if there are GPUs, else 0.",
            type=GpusPerWorker(), metavar="0|1|auto",
        ),
    ),
)  # fmt: skip
WHEN = OptionGroup(
    "Name and start",
    (
        NAME,
        TAG,
        NOTE,
        option(JobRequest, "priority", "Queue priority."),
        click.option(
            "--after", multiple=True, metavar="ID", shell_complete=complete_run,
            help="Start after this run has succeeded; can be repeated."
        ),
        click.option("--at", type=Moment(), help="Earliest start time, such as 22:00 or 2026-11-23T22:00."),
        click.option(
            "--window", type=WindowOfDay(),
            help="Daily time window, such as 20:00-07:00; the run is paused outside it.",
        ),
        MAX_DURATION,
        option(
            JobRequest, "retries", "Maximum number of retries after an infrastructure failure (a lost node or worker).",
            type=click.IntRange(0, 100), metavar="N",
        ),
    ),
)  # fmt: skip
OUTPUT = OptionGroup(
    "Output",
    (
        click.option(
            "--wait", "waits", is_flag=True,
            help="Follow the run until it ends; the exit code is 0 if it succeeds, else 1.",
        ),
        json_option("Print the run id as JSON; with --wait, print the finished run as `nightshift show --json` does."),
        click.option("--notify", metavar="URL", help="Webhook that receives a POST request when the run ends."),
        click.option(
            "--dry-run", is_flag=True,
            help="Validate the options and print the spec as JSON, without submitting a run.",
        ),
    ),
)  # fmt: skip


def take_request(settings: Settings, given: dict[str, Any]) -> JobRequest:
    """Remove the options of a `JobRequest` from `given` and return them, checked.

    Raises:
        InvalidOption: A value is out of range, or --at is in the past.
        UnknownRun: A run of `--after` does not exist.
    """
    fields = {name: given.pop(name) for name in JobRequest.model_fields if name in given}
    after = tuple(run_state.find(settings.storage, text).run_id for text in fields.pop("after", ()))
    zone = local_zone_name() if fields.get("window") else None
    request = build_request(**fields, after=after, timezone=zone, owner=settings.owner)
    if request.at is not None and request.at <= datetime.now(UTC):
        raise InvalidOption(f"--at {request.at:%Y-%m-%d %H:%M} is in the past; give a later time, or leave it out")
    return request
