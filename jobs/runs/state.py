"""Where every run stands: `state.json` of its folder, changed only under the folder's lock. Knows nothing of Redis.

A marker `STORAGE/pending/ID` stands for every run that may still need something done, so that those who look after
runs need not read the ten thousand that ended.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cluster.errors import StorageError, UnknownRun
from cluster.files import locked, read_json, write_json
from cluster.run_paths import RUN_ID, RunPaths
from jobs.runs import names, webhook_outbox

State = Literal["queued", "scheduled", "running", "paused", "succeeded", "failed", "lost", "cancelled"]
STATES: tuple[State, ...] = ("queued", "scheduled", "running", "paused", "succeeded", "failed", "lost", "cancelled")
LEFTOVERS = (".new-*", ".deleted-*")  # what a submit or a delete that was killed leaves in the folder of runs
LEFTOVER_SECONDS = 24 * 3600.0
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "lost", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where one run stands; no pydantic, which takes longer to import than `nightshift list` to list.

    Attributes:
        id: Run id.
        why: What brought it here, one line for people; the error when it failed.
        attempt: Number of the newest attempt that started, 0 before the first.
        losses: Attempts the infrastructure took since the run was last asked for by a person.
        job_worker: Who watches the newest attempt; None while it goes on elsewhere and nobody does.
        place: Where it runs, as its launcher names it.
        own_cluster: Whether a RayJob brings and runs it, so that no queue may have it.
        notify: Address that is told of the end.
        metric: The published number that people compare runs by, with its name.
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
    own_cluster: bool = False
    notify: str | None = None
    metric: tuple[str, float] | None = None
    created: str
    started: str | None = None
    ended: str | None = None
    changed: str | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "RunState":
        """Return what `to_json` gave; keys of other versions are passed over.

        Raises:
            TypeError, ValueError: It is no such record.
        """
        known = {field.name: content[field.name] for field in dataclasses.fields(cls) if field.name in content}
        if known.get("metric"):
            name, value = known["metric"]
            known["metric"] = (str(name), float(value))
        found = cls(**known)
        if found.state not in STATES:
            raise ValueError(f"state {found.state!r} is none of {', '.join(STATES)}")
        for number in (found.attempt, found.losses):
            if not isinstance(number, int):
                raise TypeError(f"{number!r} is no number of attempts")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return what goes into `state.json`."""
        return dataclasses.asdict(self)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen unless a person asks."""
        return self.state in ENDED

    @property
    def needs_watcher(self) -> bool:
        """Whether it runs in a place where it goes on alone, and no job worker watches it."""
        return self.state == "running" and self.job_worker is None

    @property
    def needs_queueing(self) -> bool:
        """Whether it should stand in a queue or be in a job worker's hands."""
        return (self.state == "queued" and not self.own_cluster) or self.needs_watcher

    def with_state(self, state: State, why: str | None = None, **changes: Any) -> "RunState":
        """Return the record of the run in another state."""
        ended = now() if state in ENDED else None
        return self.with_changes(state=state, why=why, ended=ended, **changes)

    def with_changes(self, **changes: Any) -> "RunState":
        """Return the record with some fields changed."""
        return dataclasses.replace(self, **changes)


def now() -> str:
    """Return this moment as RFC 3339 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_state(paths: RunPaths) -> RunState:
    """Return where a run stands.

    Raises:
        UnknownRun: The run does not exist.
        StorageError: Its record is damaged.
    """
    if not paths.state.exists():
        raise UnknownRun(f"run {paths.run_id} does not exist; `nightshift list` shows those that do")
    try:
        return RunState.from_json(read_json(paths.state))
    except (AttributeError, TypeError, ValueError) as error:
        raise StorageError(f"{paths.state} is damaged: {error}") from error


def write_state(paths: RunPaths, state: RunState) -> RunState:
    """Write where a run stands, and its marker while it may need something; call it inside `changing`."""
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
    """Do what the end of a run asks for and whoever wrote it down did not come to: its marker is still there."""
    if not pending_marker(paths).exists():
        return
    with changing(paths) as state:
        if state.has_ended and pending_marker(paths).exists():
            _notify(paths, state)
            pending_marker(paths).unlink()


def forget_unpublished_draft(paths: RunPaths) -> None:
    """Remove the marker of a run that was deleted, or whose submitter died before the run was there."""
    draft = paths.folder.with_name(f".new-{paths.run_id}")
    if not draft.exists() and not paths.folder.exists():  # in this order: a draft becomes the folder
        pending_marker(paths).unlink(missing_ok=True)


def _notify(paths: RunPaths, state: RunState) -> None:
    if state.notify:
        webhook_outbox.put(paths.storage, state.to_json(), state.notify)


@contextlib.contextmanager
def changing(paths: RunPaths) -> Iterator[RunState]:
    """Hold a run's lock and give its state; whoever holds it may call `write_state`.

    Raises:
        UnknownRun: The run does not exist.
    """
    if not paths.folder.is_dir():
        raise UnknownRun(f"run {paths.run_id} does not exist; `nightshift list` shows those that do")
    with locked(paths.lock):
        yield read_state(paths)


def pending_marker(paths: RunPaths) -> Path:
    """The file that stands for a run which may still need something done."""
    return paths.storage / "pending" / paths.run_id


def pending_ids(storage: Path) -> list[str]:
    """Return the ids of the runs that may need something done, oldest first."""
    folder = storage / "pending"
    return sorted((name.name for name in folder.iterdir()), key=age_key) if folder.is_dir() else []


def all_ids(storage: Path) -> list[str]:
    """Return the ids of all runs, oldest first."""
    folder = storage / "runs"
    if not folder.is_dir():
        return []
    return sorted((entry.name for entry in folder.iterdir() if RUN_ID.fullmatch(entry.name)), key=age_key)


def age_key(run_id: str) -> str:
    """Return what sorts ids by the moment in them, whatever their kind."""
    return run_id.partition("-")[2]


def states(storage: Path) -> Iterator[RunState]:
    """Yield where every run stands, newest first; a damaged or just deleted one is passed over."""
    for run_id in reversed(all_ids(storage)):
        try:
            yield read_state(RunPaths.of(storage, run_id))
        except (UnknownRun, StorageError):
            continue


def find(storage: Path, text: str) -> RunPaths:
    """Return the run that answers to an id, a unique prefix of one, or a name.

    Raises:
        UnknownRun: None does, or more than one.
    """
    named = names.run_of(storage, text)
    if named and (storage / "runs" / named).is_dir():
        return RunPaths.of(storage, named)
    if RUN_ID.fullmatch(text) and (storage / "runs" / text).is_dir():
        return RunPaths.of(storage, text)
    matches = [run_id for run_id in all_ids(storage) if text and run_id.startswith(text)]
    if len(matches) == 1:
        return RunPaths.of(storage, matches[0])
    if matches:
        raise UnknownRun(
            f"{text!r} begins {len(matches)} run ids, {matches[0]} and {matches[1]} among them; write more"
        )
    raise UnknownRun(f"no run has the id or name {text!r}; `nightshift list` shows them")


def remove(paths: RunPaths) -> None:
    """Take a run out of sight at once, then delete its files, its name and its marker."""
    state = read_state(paths)
    grave = paths.folder.with_name(f".deleted-{paths.run_id}")
    paths.folder.rename(grave)
    pending_marker(paths).unlink(missing_ok=True)
    if state.name:
        names.free(paths.storage, state.name, paths.run_id)
    shutil.rmtree(grave)


def sweep(storage: Path) -> None:
    """Delete what a submit or a delete left half done a day ago."""
    for pattern in LEFTOVERS:
        for half in (storage / "runs").glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - half.stat().st_ctime > LEFTOVER_SECONDS:
                    shutil.rmtree(half, ignore_errors=True)
