"""Where every run stands: `state.json` of its folder, changed only under the folder's lock. Knows nothing of Redis.

A marker `STORAGE/pending/ID` stands for every run that may still need something done, so that those who look after
runs need not read the ten thousand that ended.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import StorageError, UnknownRun
from cluster.files import locked, read_json, write_json
from cluster.run_paths import RUN_ID, RunPaths
from jobs import outbox

State = Literal["queued", "scheduled", "running", "paused", "succeeded", "failed", "lost", "cancelled"]
STATES: tuple[State, ...] = ("queued", "scheduled", "running", "paused", "succeeded", "failed", "lost", "cancelled")
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "lost", "cancelled"})


class RunState(BaseModel):
    """Where one run stands.

    Attributes:
        id: Run id.
        why: What brought it here, one line for people; the error when it failed.
        attempt: Number of the newest attempt that started, 0 before the first.
        losses: Attempts the infrastructure took since the run was last asked for by a person.
        job_worker: Who watches the newest attempt; None while it goes on elsewhere and nobody does.
        place: Where it runs, as its launcher names it.
        notify: Address that is told of the end.
        metric: The published number that people compare runs by, with its name.
        started: When the first attempt started.
        changed: When this record was written.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

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
    notify: str | None = None
    metric: tuple[str, float] | None = None
    created: str
    started: str | None = None
    ended: str | None = None
    changed: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen unless a person asks."""
        return self.state in ENDED

    @property
    def wants_a_watcher(self) -> bool:
        """Whether it runs in a place where it goes on alone, and no job worker watches it."""
        return self.state == "running" and self.job_worker is None

    def moved(self, state: State, why: str | None = None, **changes: Any) -> "RunState":
        """Return the record of the run in another state."""
        ended = now() if state in ENDED else None
        return self.model_copy(update={"state": state, "why": why, "ended": ended, **changes})


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
        return RunState.model_validate(read_json(paths.state))
    except ValidationError as error:
        raise StorageError(f"{paths.state} is damaged: {error.errors()[0]['msg']}") from error


def write_state(paths: RunPaths, state: RunState) -> RunState:
    """Write where a run stands, and its marker while it may need something; call it inside `changing`."""
    marker = pending_marker(paths)
    if not state.has_ended:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    state = state.model_copy(update={"changed": now()})
    write_json(paths.state, state.model_dump(mode="json"))
    if state.has_ended:
        _tell(paths, state)
        marker.unlink(missing_ok=True)
    return state


def settle(paths: RunPaths) -> None:
    """Do what the end of a run asks for and whoever wrote it down did not come to: its marker is still there."""
    if not pending_marker(paths).exists():
        return
    with changing(paths) as state:
        if state.has_ended and pending_marker(paths).exists():
            _tell(paths, state)
            pending_marker(paths).unlink()


def forget_unborn(paths: RunPaths) -> None:
    """Remove the marker of a run that was deleted, or whose submitter died before the run was there."""
    draft = paths.folder.with_name(f".new-{paths.run_id}")
    if not draft.exists() and not paths.folder.exists():  # in this order: a draft becomes the folder
        pending_marker(paths).unlink(missing_ok=True)


def _tell(paths: RunPaths, state: RunState) -> None:
    if state.notify:
        outbox.put(paths.folder.parent.parent, state.model_dump(mode="json"), state.notify)


@contextmanager
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
    return paths.folder.parent.parent / "pending" / paths.run_id


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
    named = _named(storage, text)
    if named:
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
        (names_folder(paths.folder.parent.parent) / f"{state.name}.json").unlink(missing_ok=True)
    shutil.rmtree(grave)


def names_folder(storage: Path) -> Path:
    """The folder with a file for each name in use."""
    return storage / "names"


def _named(storage: Path, name: str) -> str | None:
    file = names_folder(storage) / f"{name}.json"
    if "/" in name or not file.is_file():
        return None
    run_id = str(read_json(file)["id"])
    return run_id if (storage / "runs" / run_id).is_dir() else None
