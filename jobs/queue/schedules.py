"""Runs that repeat: a cron line, a checked spec and a request, kept under `STORAGE/schedules/NAME`.

The job workers' keeper submits what is due. Each run is named after its schedule and moment, and a name means one
run only, so that a moment is served exactly once whoever serves it and whatever dies on the way.
"""

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path

from croniter import croniter
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import ClusterError, StorageError
from cluster.files import locked, read_json, write_json
from cluster.settings import Settings
from jobs.errors import JobError, NameTaken, Refused
from jobs.queue.submit import submit
from jobs.runs.names import NAME
from jobs.runs.request import JobRequest
from jobs.runs.webhook_outbox import refuse_address
from trainer.errors import TrainerError
from trainer.specs import Spec, read_spec

log = logging.getLogger("nightshift.schedules")


class Schedule(BaseModel):
    """When to submit a run again and again.

    Attributes:
        cron: Minute, hour, day of month, month, day of week, in this machine's zone.
        request: How each run is queued; its name is made of the schedule's.
        served: The moment up to which all is submitted.
        last_run: The newest run's id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    cron: str
    request: JobRequest
    served: datetime
    last_run: str | None = None

    def due_at(self) -> datetime:
        """Return the first moment that is not served.

        Reckoned by the wall clock, so that 20:00 stays 20:00 when daylight saving begins or ends. Of an hour that
        comes twice the first counts; a time that is skipped comes as much later as the clock is put forward.
        """
        moments = croniter(self.cron, _on_the_wall(self.served))
        while True:
            moment = datetime.fromtimestamp(moments.get_next(datetime).timestamp(), UTC)
            if moment > self.served.astimezone(UTC):  # else in the hour that comes twice, once more
                return moment.astimezone()


def add(settings: Settings, name: str, cron: str, spec: Spec, request: JobRequest) -> Schedule:
    """Keep a schedule and return it.

    Raises:
        Refused: Name or cron line cannot be used, or the name is taken.
    """
    if not NAME.fullmatch(name):
        raise Refused(f"name {name!r} is no name; use letters, digits, dots, dashes and underscores")
    if not croniter.is_valid(cron) or len(cron.split()) != 5:  # noqa: PLR2004, the fields of cron
        raise Refused(f"{cron!r} is no cron line; write minute, hour, day, month, weekday, such as '0 20 * * 1-5'")
    if request.name or request.at:
        raise Refused("a schedule names its runs and says when they start; leave out --name and --at")
    if getattr(spec, "until", None):
        raise Refused("--until is one moment, long past when the schedule comes again; use --window or --max-duration")
    if request.notify:
        refuse_address(settings, request.notify)
    schedule = Schedule(name=name, cron=cron, request=request, served=datetime.now().astimezone())
    try:
        schedule.due_at()
    except ValueError as error:  # 30 February
        raise Refused(f"{cron!r} names no day that ever comes; correct its day and month") from error
    folder = _folder(settings, name)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise Refused(f"schedule {name!r} exists; remove it first") from error
    write_json(folder / "spec.json", spec.to_json())
    _write(folder, schedule)
    return schedule


def remove(settings: Settings, name: str) -> None:
    """Forget a schedule; its runs stay.

    Raises:
        Refused: There is none of that name.
    """
    if not NAME.fullmatch(name) or not _folder(settings, name).is_dir():
        raise Refused(f"no schedule is called {name!r}; `nightshift schedule list` shows them")
    shutil.rmtree(_folder(settings, name))


def schedules(settings: Settings) -> list[Schedule]:
    """Return all schedules by name; one that is damaged is passed over."""
    found = []
    for file in sorted((settings.storage / "schedules").glob("*/schedule.json")):
        try:
            found.append(Schedule.model_validate(read_json(file)))
        except (StorageError, ValidationError) as error:
            log.warning("%s is passed over: %s", file, error)
    return found


def submit_due(settings: Settings) -> list[str]:
    """Submit what is due and return the ids; of moments that were missed, the last one counts."""
    served = []
    for schedule in schedules(settings):
        try:
            served.append(_serve(settings, schedule.name))
        except (ClusterError, JobError, TrainerError, ValueError) as error:
            log.warning("schedule %s: %s", schedule.name, error)  # the others are served all the same
    return [run_id for run_id in served if run_id]


def _serve(settings: Settings, name: str) -> str | None:
    folder = _folder(settings, name)
    with locked(folder / ".lock"):
        schedule = Schedule.model_validate(read_json(folder / "schedule.json"))
        here = datetime.now().astimezone()
        if schedule.due_at() > here:
            return None
        moment: datetime = croniter(schedule.cron, _on_the_wall(here)).get_prev(datetime)
        request = schedule.request.model_copy(update={"name": f"{name}-{moment:%Y%m%d-%H%M}"})
        try:
            run_id = submit(settings, read_spec(folder / "spec.json"), request)
        except NameTaken as error:
            log.warning("schedule %s: %s", name, error)  # a keeper submitted it and died before it could say so
            run_id = schedule.last_run or ""
        _write(folder, schedule.model_copy(update={"served": here, "last_run": run_id or None}))
        return run_id or None


def _on_the_wall(moment: datetime) -> datetime:
    """Return what this machine's clock on the wall shows, without a zone."""
    return moment.astimezone().replace(tzinfo=None)


def _write(folder: Path, schedule: Schedule) -> None:
    write_json(folder / "schedule.json", schedule.model_dump(mode="json"))


def _folder(settings: Settings, name: str) -> Path:
    return settings.storage / "schedules" / name
