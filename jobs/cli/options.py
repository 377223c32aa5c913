"""Options that several commands share, with their defaults read from the specs."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic import BaseModel

from cluster.settings import Settings
from jobs.cli.option_types import Duration, GpusPerWorker, Moment, WindowOfDay
from jobs.runs import state as run_state
from jobs.runs.request import PRIORITIES, JobRequest, build_request
from trainer.specs import TrainSpec

Command = TypeVar("Command", bound=Callable[..., Any])


def default(spec: type[BaseModel], field: str) -> Any:
    """Return a field's default, so that a spec is the only place that says it."""
    return spec.model_fields[field].default


def option(spec: type[BaseModel], field: str, **more: Any) -> Callable[[Command], Command]:
    """Return the option `--field` with the default of a spec's field."""
    name = f"--{field.replace('_', '-')}"
    return click.option(name, default=default(spec, field), show_default=True, **more)


WHERE = (
    option(TrainSpec, "workers", type=int, help="Ray Train workers."),
    option(TrainSpec, "gpus_per_worker", type=GpusPerWorker(), help="GPUs of each worker."),
)
WHEN = (
    click.option("--name", help="A second name, unique in the storage."),
    option(JobRequest, "priority", type=click.Choice(PRIORITIES), help="Which of the queues."),
    click.option("--after", multiple=True, metavar="ID", help="Start when this run has succeeded; may be repeated."),
    click.option("--at", type=Moment(), help="Start at this time at the earliest: 22:00 or 2026-11-23T22:00."),
    click.option("--window", type=WindowOfDay(), help="Run only at these times of day; paused outside of them."),
    click.option("--max-duration", "max_duration_seconds", type=Duration(), help="Stop, as failed, after so long."),
    option(JobRequest, "retries", type=click.IntRange(0, 100), help="New attempts after a loss of infrastructure."),
    click.option("--notify", metavar="URL", help="Address that is told of the end."),
)
HOW = (
    click.option("--wait", "waits", is_flag=True, help="Follow until the end; exit code 0 if it succeeds, else 1."),
    click.option("--dry-run", is_flag=True, help="Print the checked spec as JSON and queue nothing."),
)


def options(*groups: tuple[Callable[[Any], Any], ...]) -> Callable[[Command], Command]:
    """Return a decorator that adds groups of options, shown in their order."""

    def add(command: Command) -> Command:
        for one in reversed([one for group in groups for one in group]):
            command = one(command)
        return command

    return add


def take_request(settings: Settings, given: dict[str, Any]) -> JobRequest:
    """Take the options of `WHEN` out of `given` and return them checked.

    Raises:
        Refused: One is out of range.
        UnknownRun: A run that it is to follow does not exist.
    """
    wanted = {name: given.pop(name) for name in JobRequest.model_fields if name in given}
    after = tuple(run_state.find(settings.storage, text).run_id for text in wanted.pop("after", ()))
    return build_request(**wanted, after=after)
