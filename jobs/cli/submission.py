"""What all submit commands do with a checked spec: print it, hand it over, or queue it and follow the run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.follow import show_progress
from jobs.cli.options import take_request
from jobs.cli.outcome import follow_to_end
from jobs.errors import InvalidOption
from jobs.queue import queues
from jobs.queue.checks import after_its_model, checked
from jobs.queue.connection import connect
from jobs.queue.submit import refuse_request, submit
from jobs.queue.worker_list import serving_workers
from jobs.runs.request import JobRequest
from jobs.runs.start_forecast import WAITING, start_forecast
from jobs.runs.state import RunState, read_state
from trainer.specs import Spec, build

NO_WORKER = "No job worker is running; `nightshift up` starts one on this machine."
OTHER_QUEUES = "No job worker serves the queue {priority}; start one with `nightshift worker`, which serves all queues."


@dataclass
class SpecCollector:
    """Takes the spec and the request of a submit command, which then queues nothing.

    It is the object of the click context in which the command is invoked.
    """

    found: tuple[Spec, JobRequest] | None = None

    @classmethod
    def invoke(
        cls,
        command: click.Command,
        arguments: list[str],
        parent: click.Context,
        default_map: dict[str, Any] | None = None,
    ) -> tuple[Spec, JobRequest]:
        """Return the checked spec and the request of a submit command.

        Raises:
            InvalidOption: With these options the command submits no run, or does more than that.
        """
        collector, name = cls(), str(command.name)
        with command.make_context(name, arguments, parent=parent, obj=collector, default_map=default_map) as context:
            command.invoke(context)
        if collector.found is None:
            raise InvalidOption(f"{name} submits nothing with these options")
        return collector.found

    @classmethod
    def refuse(cls, flag: str) -> None:
        """Refuse an option that does something at once where a command's spec is only taken.

        Raises:
            InvalidOption: It is taken.
        """
        if click.get_current_context().find_object(cls):
            raise InvalidOption(f"{flag} is for a command that runs at once; leave it out here")


def submit_options(kind: type[Spec], given: dict[str, Any], **more: Any) -> None:
    """Build and check a spec from a command's options, then queue it or print it as they say."""
    settings = Settings.read()
    how = {name: given.pop(name) for name in ("waits", "dry_run", "as_json")}
    request = take_request(settings, given)
    submit_spec(settings, build(kind, **given, **more), request, **how)


def submit_spec(
    settings: Settings,
    spec: Spec,
    request: JobRequest,
    *,
    waits: bool,
    dry_run: bool,
    as_json: bool,
    follow: Callable[[Path, str], RunState] = show_progress,
    next_command: str = "`nightshift logs -f {run_id}` follows it",
) -> None:
    """Check a spec against data, model and machine, then queue it, or print it with `dry_run`.

    Args:
        settings: Of this machine.
        spec: What to run.
        request: How and when.
        waits: Follow the run and exit with 0 if it succeeds, else 1.
        dry_run: Refuse what cannot be queued, else print the spec; queue nothing.
        as_json: Print JSON on stdout: the result with `waits`, else the run id.
        follow: Follows a run until it ends and returns its last state.
        next_command: Which command to type next.
    """
    for flag in (waits and "--wait", dry_run and "--dry-run"):
        if flag:
            SpecCollector.refuse(flag)
    spec = checked(settings, spec)
    request = after_its_model(settings, request, spec)
    collector = click.get_current_context().find_object(SpecCollector)
    if collector:
        collector.found = spec, request
        return
    if dry_run:
        refuse_request(settings, request)
        click.echo(json.dumps(spec.to_json(), indent=2))
        return
    run_id = submit(settings, spec, request)
    if not as_json:
        click.echo(run_id)
    elif not waits:
        click.echo(json.dumps({"id": run_id}))
    starts = queues_start_runs(settings, request.priority)
    if waits:
        follow_to_end(settings.storage, run_id, follow, as_json=as_json)
    called = request.name or run_id
    click.echo(
        f"{queued_text(settings, run_id, starts=starts)} {next_command.format(run_id=called)}, "
        f"`nightshift wait {called}` waits.",
        err=True,
    )


def queues_start_runs(settings: Settings, priority: str) -> bool:
    """Whether a job worker serves the queue of a priority and the queues are open; say what is missing."""
    missing = missing_to_start(settings, priority)
    for line in missing:
        click.echo(line, err=True)
    return not missing


def missing_to_start(settings: Settings, priority: str) -> list[str]:
    """Return a line for each reason why no queued run of a priority starts: paused queues, or no job worker."""
    with connect(settings) as connection:
        is_paused, workers = queues.is_paused(connection), serving_workers(connection)
    missing = ["The queues are paused; `nightshift queue resume` opens them."] if is_paused else []
    if not any(priority in worker.queues for worker in workers):
        missing.append(OTHER_QUEUES.format(priority=priority) if workers else NO_WORKER)
    return missing


def queued_text(settings: Settings, run_id: str, *, starts: bool) -> str:
    """Return a sentence that says when a run that was submitted will start, and what it waits for.

    `starts` says whether queued runs start: a job worker serves their queue and the queues are open.
    """
    state = read_state(RunPaths.of(settings.storage, run_id))
    forecast = start_forecast(settings.storage, state)
    if state.state not in WAITING or (state.state == "queued" and not starts) or not forecast:
        return f"{state.state.capitalize()}."
    return f"{state.state.capitalize()}: {forecast}."
