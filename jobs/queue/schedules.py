"""Schedules: a cron line, a checked spec and a request, stored under `STORAGE/schedules/NAME`.

The reconciler submits the runs that are due. Each run is named after its schedule and its time, and a name belongs to
one run only, so that each time is served exactly once, whichever process serves it and whatever dies meanwhile.
"""

import logging
import shutil
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from croniter import croniter
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from cluster import files
from cluster.errors import ClusterError, LockHeld, SettingsError, StorageError
from cluster.files import lock_waits_within, locked, read_json, read_json_object, write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.windows import local_now, local_zone_name, resolve, zone_of
from jobs.errors import InvalidOption, JobError, NameTaken, Refused
from jobs.queue.submit import submit
from jobs.runs import names
from jobs.runs.names import NAME, NAME_RULE
from jobs.runs.request import JobRequest
from jobs.runs.webhook_outbox import refuse_address, store_url, stored_url
from trainer.errors import TrainerError
from trainer.specs import Spec, read_spec

log = logging.getLogger("nightshift.schedules")

WEBHOOK = "webhook.json"  # the URL of --notify, readable by its owner alone
LARGEST_SHIFT = timedelta(hours=2)  # of a daylight saving change: wall clocks order no times closer to one
LOCK_SECONDS = 1.0  # that all schedules together wait for locks
CLOCK_TOLERANCE = timedelta(hours=1)  # by which the clocks of two machines may differ
_warned: dict[Path, str] = {}  # the last warning about each schedule and damaged file, so that it is logged once


class Schedule(BaseModel):
    """When to submit a run repeatedly.

    Attributes:
        cron: Minute, hour, day of month, month, day of week, in `timezone`.
        request: How each run is submitted; the run's name is derived from the schedule's.
        served: The time up to which all runs were submitted.
        last_run: Id of the newest run.
        timezone: IANA name of the zone in which the schedule was added; None means the job worker's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    cron: str
    request: JobRequest
    served: datetime
    last_run: str | None = None
    timezone: str | None = None

    @field_validator("cron")
    @classmethod
    def _cron_is_valid(cls, cron: str) -> str:
        if not _is_cron(cron):
            raise ValueError(f"cron line {cron!r} is not valid")
        return cron

    def due_at(self) -> datetime:
        """Return the first time that is not served.

        Computed in wall-clock time, so that 20:00 stays 20:00 when daylight saving begins or ends. In an hour that
        occurs twice, the first counts, except of a schedule that `runs_all_day`; a time that is skipped moves by as
        much as the clock is put forward.
        """
        zone, served, found = zone_of(self.timezone), self.served.astimezone(UTC), list[datetime]()
        wall_clocks = croniter(self.cron, self.served.astimezone(zone).replace(tzinfo=None) - LARGEST_SHIFT)
        while True:
            occurrences = self._occurrences(wall_clocks.get_next(datetime), zone)
            found += [moment for _, moment in occurrences if moment > served]
            if occurrences[0][1] > served:
                return min(found).astimezone(zone)

    def last_due(self, now: datetime) -> datetime:
        """Return the last time up to `now`, as the wall clock shows it, also one that the clock skips.

        Its `fold` is 1 if it is the second occurrence of a time that occurs twice.
        """
        zone, found = zone_of(self.timezone), list[tuple[datetime, datetime]]()
        wall_clocks = croniter(self.cron, now.replace(tzinfo=None) + LARGEST_SHIFT)
        while True:
            occurrences = self._occurrences(wall_clocks.get_prev(datetime), zone)
            found += [occurrence for occurrence in occurrences if occurrence[1] <= now.astimezone(UTC)]
            if occurrences[-1][1] <= now.astimezone(UTC):
                return max(found, key=lambda occurrence: occurrence[1])[0]

    @property
    def runs_all_day(self) -> bool:
        """Whether it runs every so many minutes or hours (`*/20 * * * *`), not at fixed times, as cron tells them."""
        minute, hour = self.cron.split()[:2]
        return minute.startswith("*") or hour.startswith("*")

    def _occurrences(self, wall_clock: datetime, zone: tzinfo) -> list[tuple[datetime, datetime]]:
        """Return a time of the wall clock with the moment at which it is due, in UTC; with both if two count."""
        first, again = resolve(wall_clock, zone).astimezone(UTC), wall_clock.replace(fold=1)
        second = resolve(again, zone).astimezone(UTC)
        is_repeated = second > first and second.astimezone(zone).replace(tzinfo=None, fold=1) == again
        return [(wall_clock, first), *([(again, second)] if is_repeated and self.runs_all_day else [])]


def add(settings: Settings, name: str, cron: str, spec: Spec, request: JobRequest) -> Schedule:
    """Store a new schedule and return it.

    Raises:
        InvalidOption: The name, the cron line or an option of the run is invalid.
        Refused: The name is taken.
    """
    if not NAME.fullmatch(name):
        raise InvalidOption(f"name {name!r} is not valid; {NAME_RULE}")
    if not NAME.fullmatch(_run_name(name, local_now())):
        raise InvalidOption(f"name {name!r} is too long for the names of its runs; use at most 49 characters")
    refuse_wrong_cron(cron)
    if request.name or request.at:
        raise InvalidOption("a schedule sets the names and start times of its runs; leave out --name and --at")
    if getattr(spec, "until", None):
        raise InvalidOption("--until is a single time, past at the schedule's next run; use --window or --max-duration")
    if request.notify:
        refuse_address(settings, request.notify)
    schedule = Schedule(name=name, cron=cron, request=request, served=local_now(), timezone=local_zone_name())
    try:
        schedule.due_at()
    except ValueError as error:  # 30 February
        raise InvalidOption(f"cron line {cron!r} has a date that never occurs; correct its day and month") from error
    folder = _folder(settings, name)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", patience=files.LOCK_SECONDS):
        if (folder / "schedule.json").exists():  # without it, a process died here before it stored the schedule
            raise Refused(f"schedule {name!r} exists; remove it first")
        write_json(folder / "spec.json", spec.to_json())
        _write(folder, schedule)
    return schedule


def refuse_wrong_cron(cron: str) -> None:
    """Refuse a cron line that is not valid.

    Raises:
        InvalidOption: It is not.
    """
    if not _is_cron(cron):
        raise InvalidOption(
            f"cron line {cron!r} is not valid; write minute, hour, day, month, weekday, in quotes: '0 20 * * 1-5'"
        )


def remove(settings: Settings, name: str) -> None:
    """Delete a schedule; its runs stay.

    Raises:
        Refused: There is no schedule with that name.
    """
    if not NAME.fullmatch(name) or not _folder(settings, name).is_dir():
        raise Refused(f"no schedule is called {name!r}; `nightshift schedule list` shows them")
    shutil.rmtree(_folder(settings, name))


def schedules(settings: Settings) -> list[Schedule]:
    """Return all schedules by name; damaged ones are skipped and logged."""
    found = []
    for file in sorted((settings.storage / "schedules").glob("*/schedule.json")):
        try:
            found.append(_read(file.parent))
        except StorageError as error:
            _warn_once(file, f"schedule {file.parent.name} is skipped: {error}")
    return found


def spec_of(settings: Settings, name: str) -> dict[str, Any]:
    """Return the spec of a schedule's runs as JSON.

    Raises:
        StorageError: It is missing or damaged.
    """
    return read_json_object(_folder(settings, name) / "spec.json")


def submit_due(settings: Settings) -> list[str]:
    """Submit the runs that are due and return their ids; of several missed times, only the last is served.

    Schedules that a stopped process has locked are skipped, so that they do not delay the others.
    """
    with lock_waits_within(LOCK_SECONDS):
        served = [_serve_or_warn(settings, schedule.name) for schedule in schedules(settings)]
    return [run_id for run_id in served if run_id]


def _serve_or_warn(settings: Settings, name: str) -> str | None:
    """Submit the run of a schedule if it is due; what is wrong is logged once, and keeps no other from being served."""
    folder = _folder(settings, name)
    try:
        served = _serve(settings, name)
    except LockHeld as error:
        _warn_once(folder, f"schedule {name} is skipped until its lock is free: {error}")
    except (ClusterError, JobError, TrainerError, ValueError) as error:
        _warn_once(folder, f"schedule {name}: {error}")
    except OSError as error:  # it was removed meanwhile, or the disk is full
        _warn_once(folder, f"schedule {name} cannot be written: {error.strerror}")
    else:
        _warned.pop(folder, None)
        return served
    return None


def _warn_once(place: Path, line: str) -> None:
    if _warned.get(place) != line:
        _warned[place] = line
        log.warning("%s", line)


def _serve(settings: Settings, name: str) -> str | None:
    folder = _folder(settings, name)
    with locked(folder / ".lock", patience=files.LOCK_SECONDS):
        schedule = _read(folder)
        here = local_now(schedule.timezone)
        if schedule.served - here > CLOCK_TOLERANCE:
            log.warning(
                "schedule %s was served up to %s, which is in the future: some clock was wrong; it continues now",
                name, schedule.served.isoformat(timespec="seconds"),
            )  # fmt: skip
            _write(folder, schedule.model_copy(update={"served": here}))
            return None
        if schedule.due_at().astimezone(UTC) > here.astimezone(UTC):
            return None
        moment = schedule.last_due(here)
        request = schedule.request.model_copy(update={"name": _run_name(name, moment)})
        try:
            run_id = submit(settings, read_spec(folder / "spec.json"), request)
        except NameTaken as error:
            owner = names.run_of(settings.storage, str(request.name))
            if owner is None or not RunPaths.of(settings.storage, owner).folder.is_dir():
                return None  # somebody is submitting a run of that name: the next call sees whether it was published
            log.warning("schedule %s: %s", name, error)  # another reconciler submitted it and died before recording it
            run_id = owner
        _write(folder, schedule.model_copy(update={"served": here, "last_run": run_id}))
        return run_id


def _run_name(schedule: str, moment: datetime) -> str:
    """Return the name of a run, with a "b" if its time occurs for the second time: the names of runs are unique."""
    return f"{schedule}-{moment:%Y%m%d}{'b' if moment.fold else '-'}{moment:%H%M}"


def _is_cron(cron: str) -> bool:
    return len(cron.split()) == 5 and croniter.is_valid(cron)  # noqa: PLR2004, the fields of cron


def _read(folder: Path) -> Schedule:
    """Return the schedule in a folder.

    Raises:
        StorageError: Its `schedule.json` is damaged.
    """
    file = folder / "schedule.json"
    try:
        schedule = Schedule.model_validate(read_json(file))
        if (folder / WEBHOOK).exists():
            request = schedule.request.model_copy(update={"notify": stored_url(folder / WEBHOOK)})
            schedule = schedule.model_copy(update={"request": request})
        if schedule.name != folder.name:
            raise StorageError(f"{file} is damaged: it belongs to {schedule.name!r}")
        schedule.due_at()
    except ValidationError as error:
        raise StorageError(f"{file} is damaged: {error.errors()[0]['msg']}") from error
    except (SettingsError, ValueError, OverflowError, OSError) as error:
        raise StorageError(f"{file} is damaged: {error}") from error
    return schedule


def _write(folder: Path, schedule: Schedule) -> None:
    url = schedule.request.notify
    if url and stored_url(folder / WEBHOOK) != url:
        store_url(folder / WEBHOOK, url)
    shared = schedule.model_copy(update={"request": schedule.request.without_url()})
    write_json(folder / "schedule.json", shared.model_dump(mode="json"))


def _folder(settings: Settings, name: str) -> Path:
    return settings.storage / "schedules" / name
