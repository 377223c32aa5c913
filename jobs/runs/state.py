"""The state of every run: `state.json` in its folder, changed only under the folder's lock. Knows nothing of Redis.

A marker file `STORAGE/pending/ID` exists for every run that may still need something done, so that the reconciler
does not have to read the ten thousand runs that have ended.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cluster.errors import SeveralRuns, StorageAway, StorageError, UnknownRun
from cluster.files import LOCK_SECONDS, is_damage, locked, read_json_object, write_json
from cluster.run_paths import RUN_ID, RunPaths
from cluster.storage_marker import refuse_away
from jobs.runs import names, webhook_outbox
from jobs.runs.drafts import is_submitted_or_in_progress
from trainer.evaluation.metric_text import figure_text

State = Literal["queued", "scheduled", "running", "paused", "succeeded", "failed", "lost", "cancelled", "damaged"]
STATES: tuple[State, ...] = ("queued", "scheduled", "running", "paused", "succeeded", "failed", "lost", "cancelled")
DAMAGED: State = "damaged"  # shown for a run whose `state.json` cannot be read; never written
PRIORITIES = ("high", "normal", "low")
MOST_ATTEMPTS = 1_000_000  # a larger number is damage
LARGEST_METRIC = 1e300  # a larger one is damage; NaN fails the comparison too
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "lost", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of one run; not a pydantic model, because importing pydantic takes longer than `nightshift list`.

    Attributes:
        id: Run id.
        why: The reason for the state, one line for people; the error if the run failed.
        attempt: Number of the newest attempt that started, 0 before the first.
        losses: Attempts that the infrastructure ended since a person last submitted or retried the run.
        job_worker: The job worker that watches the newest attempt; None while it runs elsewhere unwatched.
        place: Where it runs, as its launcher names it.
        too_new_for: The version of Nightshift that does not know all of its spec or request; a queued run that has one
            waits for another version.
        own_cluster: Whether a RayJob runs it on a cluster of its own, so that it may not be queued.
        notify: URL that receives a webhook when the run ends, in runs of version 0.1.0; `webhook.json` has it today.
        tags: Words by which people find the run again.
        note: What people want to remember about the run.
        owner: Who submitted it.
        metric: Name and value of the published metric that people compare runs by.
        metric_split: The split that the metric is of, or "folds"; None in runs of version 0.1.0.
        started: When the first attempt started.
        changed: When this record was written.
    """

    id: str
    kind: str
    name: str | None = None
    priority: str = "normal"
    state: State
    why: str | None = None
    attempt: int = 0
    losses: int = 0
    job_worker: str | None = None
    place: str = "here"
    too_new_for: str | None = None
    own_cluster: bool = False
    notify: str | None = None
    tags: tuple[str, ...] = ()
    note: str | None = None
    owner: str | None = None
    metric: tuple[str, float] | None = None
    metric_split: str | None = None
    created: str
    started: str | None = None
    ended: str | None = None
    changed: str | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "RunState":
        """Return the state that `to_json` returned; keys of other versions are ignored.

        Raises:
            TypeError, ValueError: The content has another shape.
        """
        for name, kinds in _FIELD_TYPES.items():
            if name in content and type(content[name]) not in kinds:
                raise TypeError(f"{name} {content[name]!r} has the wrong type")
        known = {name: content[name] for name in _FIELD_TYPES if name in content}
        tags = content.get("tags") or ()
        if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
            raise TypeError(f"tags {tags!r} are not a list of texts")
        found = cls(**known, tags=tuple(tags), metric=_metric(content.get("metric")))
        if found.state not in STATES:
            raise ValueError(f"state {found.state!r} is not one of {', '.join(STATES)}")
        if found.priority not in PRIORITIES:
            raise ValueError(f"priority {found.priority!r} is not one of {', '.join(PRIORITIES)}")
        if not (0 <= found.attempt <= MOST_ATTEMPTS and 0 <= found.losses <= MOST_ATTEMPTS):
            raise ValueError(f"attempt {found.attempt} or losses {found.losses} is out of range")
        for time_text in (found.created, found.started, found.ended, found.changed):
            if time_text is not None and datetime.fromisoformat(time_text).tzinfo is None:
                raise ValueError(f"time {time_text!r} has no time zone")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the content of `state.json`."""
        # All values are plain, so that none has to be copied, as `dataclasses.asdict` does.
        return {name: value for name, value in vars(self).items() if name != "too_new_for" or value is not None}

    @property
    def metric_text(self) -> str:
        """The metric and what it is of, such as `test auroc 0.9812`; "" before the run has one."""
        if self.metric is None:
            return ""
        split = f"{self.metric_split} " if self.metric_split else ""
        return f"{split}{self.metric[0]} {figure_text(self.metric[1], of=self.metric[0])}"

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended; only a person's `retry` starts it again."""
        return self.state in ENDED

    @property
    def needs_watcher(self) -> bool:
        """Whether it runs on a cluster that needs no job worker, and no job worker watches it."""
        return self.state == "running" and self.job_worker is None

    @property
    def needs_queueing(self) -> bool:
        """Whether it should be in a queue or taken by a job worker."""
        return (self.state == "queued" and not self.own_cluster) or self.needs_watcher

    @property
    def reason(self) -> str:
        """Why the run is in its state, without the state where the reason repeats it; "" if no reason is known."""
        return (self.why or "").removeprefix(f"{self.state} ")

    @property
    def no_model_cause(self) -> str:
        """Why a run without a published model has none, and the cure."""
        if self.kind not in ("train", "search"):
            return f"it is of kind {self.kind}; give a training run or a search"
        if not self.has_ended:
            return f"it is {self.state}; wait for it: nightshift wait {self.id}"
        if self.state == "succeeded":
            return "its folder best/ is missing; restore it from a backup, or train again"
        return f"it is {self.state}; `nightshift retry {self.id}` continues it"

    def with_state(self, state: State, why: str | None = None, **changes: Any) -> "RunState":
        """Return the record with another state."""
        ended = now() if state in ENDED else None
        return self.with_changes(**{"state": state, "why": why, "ended": ended, "too_new_for": None, **changes})

    def with_changes(self, **changes: Any) -> "RunState":
        """Return the record with some fields changed."""
        return dataclasses.replace(self, **changes)


_TEXT, _OPTIONAL_TEXT = (str,), (str, type(None))
_FIELD_TYPES: dict[str, tuple[type, ...]] = {  # by exact type: JSON's true is no number; `metric` is read by `_metric`
    **dict.fromkeys(("id", "kind", "priority", "state", "place", "created"), _TEXT),
    **dict.fromkeys(("name", "why", "job_worker", "too_new_for", "notify", "note", "owner"), _OPTIONAL_TEXT),
    **dict.fromkeys(("metric_split", "started", "ended", "changed"), _OPTIONAL_TEXT),
    **dict.fromkeys(("attempt", "losses"), (int,)),
    "own_cluster": (bool,),
}


def _metric(value: Any) -> tuple[str, float] | None:
    """Return a metric of `state.json`; None if there is none or its number is not finite."""
    if value is None:
        return None
    name, number = value
    if not isinstance(name, str) or isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"metric {value!r} is not a name and a number")
    return (name, float(number)) if abs(number) < LARGEST_METRIC else None


def now() -> str:
    """Return this moment as RFC 3339 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from one time of a state to another, 0 where the clock was set back."""
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def read_state(paths: RunPaths) -> RunState:
    """Return the state of a run.

    Raises:
        UnknownRun: The run does not exist.
        StorageAway: The storage is not mounted.
        StorageError: Its `state.json` is missing, damaged or cannot be read.
    """
    cure = f"`nightshift delete --force {paths.run_id}` deletes the run"
    if not paths.state.exists():
        if not paths.folder.is_dir():
            refuse_away(paths.folder.parent)
            raise UnknownRun(f"run {paths.run_id} does not exist; `nightshift list` shows those that do")
        if not paths.state.exists():  # looked at again: the storage may have come back between the two
            raise StorageError(f"{paths.state} does not exist; {cure}")
    try:
        state = RunState.from_json(read_json_object(paths.state))
        if state.id != paths.run_id:
            raise ValueError(f"it belongs to {state.id}")
    except (TypeError, ValueError) as error:
        raise StorageError(f"{paths.state} is damaged: {error}; {cure}") from error
    except StorageError as error:
        if not is_damage(error):
            raise
        refuse_away(paths.folder.parent)  # it may have gone since
        raise StorageError(f"{error}; {cure}") from error
    return state


def is_damaged(paths: RunPaths) -> bool:
    """Whether the `state.json` of a run is missing or damaged, while the storage itself can be read."""
    try:
        read_state(paths)
    except StorageError as error:
        return is_damage(error)
    return False


def write_state(paths: RunPaths, state: RunState) -> RunState:
    """Write the state of a run, and keep its marker file until the run has ended; call it inside `changing`."""
    marker = pending_marker(paths)
    if not state.has_ended:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    state = state.with_changes(changed=now())
    write_json(paths.state, state.to_json())
    if state.has_ended:
        _notify(paths, state)
        marker.unlink(missing_ok=True)
    return state


def finalize(paths: RunPaths) -> None:
    """Complete the end of a run whose writer died after `state.json`: send its webhook, remove its marker file."""
    if not pending_marker(paths).exists():
        return
    with changing(paths) as state:
        if state.has_ended and pending_marker(paths).exists():
            _notify(paths, state)
            pending_marker(paths).unlink()


def forget_unpublished_draft(paths: RunPaths) -> None:
    """Remove the marker file of a run that was deleted, or whose submitter died before publishing it."""
    if not is_submitted_or_in_progress(paths):
        pending_marker(paths).unlink(missing_ok=True)


def _notify(paths: RunPaths, state: RunState) -> None:
    if url := state.notify or webhook_outbox.stored_url(paths.webhook):
        webhook_outbox.put(paths.storage, state.to_json(), url)


@contextlib.contextmanager
def changing(paths: RunPaths) -> Iterator[RunState]:
    """Hold a run's lock and yield its state; inside, `write_state` may be called.

    Raises:
        UnknownRun: The run does not exist.
        StorageAway: The storage is not mounted.
        StorageError: Another process has held the lock for `LOCK_SECONDS`: it is stopped, so only this run waits.
    """
    if not paths.folder.is_dir():
        refuse_away(paths.folder.parent)
        raise UnknownRun(f"run {paths.run_id} does not exist; `nightshift list` shows those that do")
    with locked(paths.lock, patience=LOCK_SECONDS):
        yield read_state(paths)


def pending_marker(paths: RunPaths) -> Path:
    """The marker file of a run that may still need something done."""
    return paths.storage / "pending" / paths.run_id


def pending_ids(storage: Path) -> list[str]:
    """Return the ids of the runs that may need something done, oldest first."""
    folder = storage / "pending"
    return sorted((name.name for name in folder.iterdir()), key=age_key) if folder.is_dir() else []


def all_ids(storage: Path) -> list[str]:
    """Return the ids of all runs, oldest first.

    Raises:
        StorageError: The storage is a file, or a link to a folder that is away.
    """
    folder = storage / "runs"
    if not folder.is_dir():
        for place in (storage, folder):
            if os.path.lexists(place) and not place.is_dir():
                raise StorageError(f"{place} is not a folder; mount the storage, or correct NIGHTSHIFT_STORAGE")
        return []
    # Not `iterdir`: a hundred thousand paths take longer than all else here.
    return sorted(filter(RUN_ID.fullmatch, os.listdir(folder)), key=age_key)  # noqa: PTH208


def age_key(run_id: str) -> str:
    """Return the sort key that orders ids by the time in them, whatever their kind."""
    return run_id.partition("-")[2]


def state_or_damaged(storage: Path, run_id: str) -> RunState | None:
    """Return the state of a run; as damaged if its `state.json` is unreadable; None if the run does not exist."""
    paths = RunPaths.of(storage, run_id)
    try:
        return read_state(paths)
    except UnknownRun:  # deleted just before
        return None
    except StorageError as error:
        return _damaged(run_id, str(error).replace(f"{paths.folder}/", ""))


def _damaged(run_id: str, why: str) -> RunState:
    """Return the state to show for a run whose `state.json` is missing or damaged; its kind and age are in its id."""
    kind, day, second, _ = run_id.split("-")
    try:
        created = datetime.strptime(f"{day}{second}+0000", "%Y%m%d%H%M%S%z")
    except ValueError:
        created = datetime.fromtimestamp(0, UTC)
    return RunState(id=run_id, kind=kind, state=DAMAGED, why=why, created=created.isoformat().replace("+00:00", "Z"))


def find(storage: Path, text: str) -> RunPaths:
    """Return the run with an id, a unique prefix of an id, or a name.

    Raises:
        UnknownRun: No run matches.
        SeveralRuns: Several runs match.
    """
    if RUN_ID.fullmatch(text) and (storage / "runs" / text).is_dir():  # first: no name may hide a run
        return RunPaths.of(storage, text)
    named = names.run_of(storage, text)
    if named and (storage / "runs" / named).is_dir():
        return RunPaths.of(storage, named)
    matches = [run_id for run_id in all_ids(storage) if text and run_id.startswith(text)]
    if len(matches) == 1:
        return RunPaths.of(storage, matches[0])
    if matches:
        raise SeveralRuns(
            f"{len(matches)} run ids begin with {text!r}, such as {matches[0]} and {matches[1]}; give more of the id"
        )
    why, close = "", None
    if (storage / "runs").is_dir():
        close = names.close_name(storage, text)
        cure = f"did you mean {close}?" if close else "`nightshift list` shows them"
    else:
        why = f": {storage} has no runs at all"
        cure = "mount the shared storage there, or correct NIGHTSHIFT_STORAGE"
    if RUN_ID.fullmatch(text) and not close:
        cure += f"; a RayJob is shown once it has started: `kubectl describe rayjob {text}`"
    raise UnknownRun(f"no run has the id or name {text!r}{why}; {cure}")


def find_to_follow(storage: Path, text: str) -> RunPaths:
    """Return the run as `find` does, for a caller that waits while the storage is away.

    Raises:
        UnknownRun: No run, or more than one, matches.
        StorageAway: The storage has no runs at all, and it is probably not mounted.
    """
    try:
        return find(storage, text)
    except UnknownRun as error:
        if _may_be_unmounted(storage):
            raise StorageAway(str(error)) from error
        return find(storage, text)  # again: it may have been mounted since


def _may_be_unmounted(storage: Path) -> bool:
    """Whether the storage, or the folder that it should be below, is empty, as the mount point of a share that is away.

    Beside a path that is misspelt, and in the home of a user who has no storage yet, there are other files.
    """
    nearest = next(folder for folder in (storage, *storage.parents) if folder.is_dir())
    with contextlib.suppress(PermissionError):
        return not any(nearest.iterdir())
    return False
