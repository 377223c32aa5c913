"""How and when a run should start: `job.json`, written once beside the spec."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cluster.errors import NewerVersion, SettingsError, StorageError
from cluster.files import read_json
from cluster.run_paths import RUN_ID, RunPaths
from cluster.version import VERSION
from cluster.windows import TimeWindow, zone_of
from jobs.errors import InvalidOption
from jobs.runs import state as run_state
from jobs.runs.names import NAME, NAME_RULE
from trainer.specs.base import one_line

PRIORITIES = run_state.PRIORITIES

LONGEST_NOTE, LONGEST_OWNER = 1000, 63
Priority = Literal["high", "normal", "low"]


class JobRequest(BaseModel):
    """When a run may start and how often.

    Attributes:
        name: A second name of the run, unique in the storage.
        priority: The queue: high, normal or low.
        after: Ids of runs that must succeed first.
        at: The earliest start.
        window: A daily time window, such as `20:00-07:00`; outside of it the run is paused.
        timezone: IANA name of the time zone of `window`; None means the job worker's.
        max_duration_seconds: The longest running time of one attempt; then it is stopped and the run fails.
        retries: How often the run is restarted after an infrastructure failure; its own errors are not retried.
        notify: URL that receives a webhook when the run ends.
        tags: Words by which people find the run again.
        note: What people want to remember about the run.
        owner: Who submitted it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str | None = None
    priority: Priority = "normal"
    after: tuple[str, ...] = ()
    at: datetime | None = None
    window: str | None = None
    timezone: str | None = None
    max_duration_seconds: Annotated[float, Field(gt=0)] | None = None
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    notify: str | None = None
    tags: tuple[str, ...] = ()
    note: Annotated[str, Field(max_length=LONGEST_NOTE)] | None = None
    owner: Annotated[str, Field(max_length=LONGEST_OWNER)] | None = None

    @field_validator("tags")
    @classmethod
    def _tags_are_valid(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        for tag in tags:
            if not NAME.fullmatch(tag):
                raise ValueError(f"tag {tag!r} is not valid; {NAME_RULE}")
        return tuple(dict.fromkeys(tags))

    @field_validator("name")
    @classmethod
    def _name_is_valid(cls, name: str | None) -> str | None:
        if name is not None and not NAME.fullmatch(name):
            raise ValueError(f"name {name!r} is not valid; {NAME_RULE}")
        return name

    @field_validator("at")
    @classmethod
    def _at_has_a_zone(cls, at: datetime | None) -> datetime | None:
        if at is None:
            return None
        if at.tzinfo is None:
            raise ValueError(f"time {at} has no time zone; write it with one, such as 2026-11-23T20:00+01:00")
        try:
            at.astimezone(UTC)
        except OverflowError as error:
            raise ValueError(f"time {at} is out of range; use a year between 1970 and 9998") from error
        return at

    @field_validator("window")
    @classmethod
    def _window_is_valid(cls, window: str | None) -> str | None:
        return str(TimeWindow.parse(window)) if window else None

    @field_validator("timezone")
    @classmethod
    def _timezone_is_known(cls, name: str | None) -> str | None:
        if name is not None:
            zone_of(name)
        return name

    def without_url(self) -> "JobRequest":
        """Return the request for a file that others than its owner can read: the webhook's URL can have credentials."""
        return self.model_copy(update={"notify": None})

    def without_labels(self) -> "JobRequest":
        """Return the request for `job.json`, which job workers of earlier versions read; the state has the labels."""
        return self.model_copy(update={"tags": (), "note": None, "owner": None})

    def to_json(self) -> dict[str, Any]:
        """Return the request as plain JSON values."""
        values = self.model_dump(mode="json")
        newer = ("timezone", "tags", "note", "owner")  # version 0.1.0 does not know them
        return {name: value for name, value in values.items() if name not in newer or value not in (None, [])}


def build_request(**options: Any) -> JobRequest:
    """Return the checked request.

    Raises:
        InvalidOption: An option is out of range, or the name has the form of a run id; one line.
    """
    if RUN_ID.fullmatch(options.get("name") or ""):  # it would hide the run with that id; old requests may have one
        raise InvalidOption(f"name {options['name']!r} has the form of a run id; choose another name")
    try:
        return JobRequest(**options)
    except ValidationError as error:
        raise InvalidOption(one_line(error)) from error


def read_request(paths: RunPaths) -> JobRequest:
    """Return how and when a run should start.

    Raises:
        NewerVersion: It has an option that this version does not know.
        StorageError: The run's `job.json` is absent or damaged.
    """
    try:
        return JobRequest.model_validate(read_json(paths.job))
    except ValidationError as error:
        first = error.errors()[0]
        if unknown := [str(fault["loc"][0]) for fault in error.errors() if fault["type"] == "extra_forbidden"]:
            raise NewerVersion(
                f"{paths.job} has {', '.join(unknown)}, which Nightshift {VERSION} does not know; a "
                "newer version wrote it: update the job workers"
            ) from error
        place = ".".join(str(part) for part in first["loc"])
        raise StorageError(f"{paths.job} is damaged: {place + ': ' if place else ''}{first['msg']}") from error
    except SettingsError as error:
        raise StorageError(f"{paths.job} is damaged: {error}") from error
