"""Cancel, retry and delete runs."""

import logging
import shutil
import time
from dataclasses import dataclass

import redis

from cluster.files import locked
from cluster.lease import heartbeat_of
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.stop_request import StopRequest
from cluster.storage_patience import StoragePatience
from jobs.errors import JobError, QueueUnreachable, Refused
from jobs.queue import queues
from jobs.queue.connection import connect
from jobs.runs import deletion
from jobs.runs import state as run_state
from jobs.runs.outcomes import mark_dead, no_heartbeat
from jobs.runs.promotions import refuse_in_use
from jobs.runs.state import RunState, changing, read_state, write_state

log = logging.getLogger("nightshift.actions")

POLL_SECONDS = 0.1


def cancel(settings: Settings, paths: RunPaths, *, at_once: bool = False) -> RunState:
    """Stop a run, wait until none of its processes run, and return its last state.

    Raises:
        Refused: It has already ended.
    """
    return wait_until_stopped(settings, paths, request_cancel(settings, paths, at_once=at_once))


def request_cancel(settings: Settings, paths: RunPaths, *, at_once: bool = False) -> RunState:
    """Ask a running run to stop, or cancel one that does not run yet; return the state that it had.

    Raises:
        Refused: It has already ended.
    """
    with changing(paths) as found:
        if found.has_ended:
            raise Refused(f"{found.id} has already ended: it {_was(found)}")
        if found.state == "running":
            StopRequest("cancel", found.attempt, now=at_once).publish(paths.stop)
        else:
            write_state(paths, found.with_state("cancelled", "cancelled before it ran"))
    if found.state != "running":
        _take_from_queue(settings, found)
    return found


def retry(settings: Settings, paths: RunPaths) -> RunState:
    """Queue a run again that did not succeed; it resumes from its last checkpoint, whichever cluster it ran on.

    Raises:
        Refused: It is running, waiting, or succeeded.
        QueueUnreachable: Redis does not answer; nothing changed.
    """
    connection = connect(settings)
    with changing(paths) as found:
        if found.state == "paused":
            raise Refused(f"{found.id} is paused and resumes by itself when its window opens")
        if found.state == "succeeded":
            raise Refused(f"{found.id} has succeeded; `nightshift fork {found.id}` runs it again")
        if not found.has_ended:
            raise Refused(f"{found.id} cannot be retried: it {_was(found)}")
        paths.error.unlink(missing_ok=True)
        state = write_state(paths, found.with_state("queued", losses=0, own_cluster=False))
    try:
        queues.enqueue(connection, state.id, state.priority)
    except redis.RedisError as error:
        raise QueueUnreachable(
            f"the connection to Redis was lost ({error}); {state.id} is queued when it is back"
        ) from error
    return state


def delete(paths: RunPaths, *, force: bool = False) -> None:
    """Delete a run that has ended, with its name and its files.

    Args:
        paths: The run's files.
        force: Delete a run whose model is in use, and a damaged run; an attempt of it that is still running can publish
            nothing afterwards.

    Raises:
        Refused: It has not ended, or its model is in use under a name.
        StorageError: Its `state.json` is damaged.
    """
    if force and run_state.is_damaged(paths):
        with locked(paths.lock):
            tombstone = deletion.hide(paths)
    else:
        with changing(paths) as state:
            require_ended(state)
            if not force:
                refuse_in_use(paths)
            tombstone = deletion.hide(paths)
    shutil.rmtree(tombstone)


def require_ended(state: RunState) -> None:
    """Refuse to delete a run that has not ended.

    Raises:
        Refused: It has not.
    """
    if not state.has_ended:
        raise Refused(f"{state.id} {_was(state)}; cancel it first: nightshift cancel {state.id}")


def _take_from_queue(settings: Settings, state: RunState) -> None:
    """Remove the run's entry; a failure does no harm, because a worker skips the entry of a run that is not queued."""
    try:
        queues.remove(connect(settings), state.id, state.priority)
    except (JobError, redis.RedisError):
        return


@dataclass(frozen=True)
class Heartbeat:
    """The last heartbeat of a run.

    Attributes:
        value: What `heartbeat_of` returned.
        since: When this process saw it first, in seconds of `time.monotonic`.
    """

    value: tuple[int, int | float | str | None]
    since: float

    @classmethod
    def seen(cls, paths: RunPaths) -> "Heartbeat":
        """Return the heartbeat of a run as it is now."""
        return cls(heartbeat_of(paths), time.monotonic())


def wait_until_stopped(
    settings: Settings,
    paths: RunPaths,
    before: RunState,
    heartbeat: Heartbeat | None = None,
    patience: StoragePatience | None = None,
) -> RunState:
    """Wait for the end of an attempt that was asked to stop, and return the last state of its run.

    It is marked dead if its heartbeat stops, because there may be no job worker to do it.

    Args:
        settings: Of this machine.
        paths: The run.
        before: What `request_cancel` returned.
        heartbeat: The heartbeat when it was asked; None: now. One that has not changed since is as old as that.
        patience: With a storage that does not answer; by default its pauses are logged.
    """
    if before.state != "running":
        return read_state(paths)
    attempt, patience = before.attempt, patience or StoragePatience(log.warning)
    heartbeat, pauses = heartbeat or patience.call(lambda: Heartbeat.seen(paths)), patience.pauses
    while (state := patience.call(lambda: read_state(paths))).state == "running" and state.attempt == attempt:
        now = patience.call(lambda: Heartbeat.seen(paths))
        if heartbeat.value != now.value or patience.pauses > pauses:  # in a pause, no heartbeat was written or seen
            heartbeat, pauses = now, patience.pauses
        if time.monotonic() - heartbeat.since > settings.lease_seconds:
            patience.call(lambda: mark_dead(paths, attempt, no_heartbeat(settings.lease_seconds)))
        time.sleep(POLL_SECONDS)
    return state


def _was(state: RunState) -> str:
    return {"running": "is running", "queued": "is queued"}.get(state.state, f"is {state.state}")
