"""The reconciler: queues the runs that should be queued, starts those whose time has come, and marks dead attempts.

The run folders are the truth. Whatever Redis forgot, lost or holds twice is repaired from them, so that emptying Redis
loses nothing. Every step is idempotent, and several reconcilers may run at once.
"""

import logging
import time
from dataclasses import dataclass, field

import redis

from cluster.errors import ClusterError, StorageAway, UnknownRun
from cluster.files import lock_waits_within
from cluster.launch import THIS_MACHINE
from cluster.lease import heartbeat_of
from cluster.run_paths import RUN_ID, RunPaths
from cluster.settings import Settings
from cluster.storage_marker import refuse_away
from jobs.queue import queues
from jobs.queue.leader_lock import LeaderLock
from jobs.queue.schedules import submit_due
from jobs.queue.worker_list import live_workers
from jobs.runs import deletion
from jobs.runs import state as run_state
from jobs.runs.outcomes import mark_dead, no_heartbeat, release_watch
from jobs.runs.owner_limit import OwnerRuns
from jobs.runs.request import PRIORITIES, read_request
from jobs.runs.state import RunState, changing, read_state, write_state
from jobs.runs.waits import start_blocker

log = logging.getLogger("nightshift.reconciler")

TICK_SECONDS = 2.0
LOCK_SECONDS = 1.0  # that all runs together wait for locks: a stopped process delays nothing but its own run
STUCK_SECONDS = 60.0  # a run that a worker took and has not started for this long was dropped
FULL_EVERY_SECONDS = 60.0
LONGEST_LOOK_SECONDS = 10.0  # a longer time between two looks counts as this: a heartbeat may have come and waited, too
TOO_NEW_SECONDS = 600.0  # between two tries of a run that is too new: the cluster may have been updated


@dataclass
class Observation:
    """The last value of something that should change, by this process's monotonic clock.

    Attributes:
        value: The value.
        since: When it was first seen.
        seen: When it was last seen.
        unseen_seconds: Of the time between them, how long nobody looked: the storage or this process stood still.
    """

    value: object
    since: float
    seen: float
    unseen_seconds: float = 0.0


@dataclass
class ReconcilerMemory:
    """What one reconciler remembers between its calls.

    Attributes:
        heartbeats: The last heartbeat of each running run.
        taken: Runs in an intermediate list, taken by a worker that has not started them.
        watched: The job worker of each run on another cluster that Redis does not know.
        too_new: The versions of the job workers, by run that one of them did not know all of.
        warnings: The last warning logged for each run.
    """

    heartbeats: dict[str, Observation] = field(default_factory=dict)
    taken: dict[str, Observation] = field(default_factory=dict)
    watched: dict[str, Observation] = field(default_factory=dict)
    too_new: dict[str, Observation] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)

    def warn_once(self, run_id: str, line: str) -> None:
        """Log why a run cannot be reconciled, once for each cause."""
        if self.warnings.get(run_id) != line:
            self.warnings[run_id] = line
            log.warning("%s is skipped: %s", run_id, line)

    def runs(self) -> set[str]:
        """Return the ids of all observed runs."""
        return {*self.heartbeats, *self.taken, *self.watched, *self.too_new}

    def unchanged_since(self, moment: float) -> set[str]:
        """Return the runs of which something has not changed since a time of this process's monotonic clock."""
        observed = (self.heartbeats, self.taken, self.watched)
        return {run_id for group in observed for run_id, last in group.items() if last.since <= moment}

    def forget(self, run_id: str) -> None:
        """Forget a deleted run."""
        for group in (self.heartbeats, self.taken, self.watched, self.too_new):
            group.pop(run_id, None)

    def seconds_unchanged(self, known: dict[str, Observation], key: str, value: object) -> float:
        """Return for how many seconds `value` was seen not to change."""
        now, last = time.monotonic(), known.get(key)
        if last is None or last.value != value:
            last = known[key] = Observation(value, now, now)
        last.unseen_seconds += max(0.0, now - last.seen - LONGEST_LOOK_SECONDS)
        last.seen = now
        return now - last.since - last.unseen_seconds


@dataclass(frozen=True)
class Repair:
    """One thing that the reconciler did for a run."""

    run_id: str
    what: str


def reconcile(
    settings: Settings, connection: redis.Redis, memory: ReconcilerMemory, *, every_run: bool = False
) -> list[Repair]:
    """Repair what can be repaired and return the repairs; call it repeatedly, with the same memory.

    Args:
        settings: The storage and the lease time.
        connection: The queue's Redis.
        memory: What this reconciler remembers between calls.
        every_run: Look at every run of the storage, not only at those with a marker file.

    Raises:
        redis.RedisError: Redis went away meanwhile; nothing is lost.
    """
    workers = live_workers(connection)
    snapshot = QueueSnapshot(
        waiting={priority: set(queues.waiting(connection, priority)) for priority in PRIORITIES},
        taken={priority: set(queues.taken(connection, priority)) for priority in PRIORITIES},
        workers={worker.name for worker in workers},
        versions=frozenset(worker.version for worker in workers if worker.version is not None),
    )
    repairs: list[Repair] = []
    listed = run_state.all_ids(settings.storage) if every_run else run_state.pending_ids(settings.storage)
    owners = None if settings.runs_per_owner is None else OwnerRuns.read(settings.storage, settings.runs_per_owner)
    if owners is not None:  # the slots of an owner go to the highest priority, and then to the oldest run
        listed = sorted(listed, key=lambda run_id: owners.priorities.get(run_id, 0))
    with lock_waits_within(LOCK_SECONDS):
        for run_id in dict.fromkeys((*listed, *sorted(memory.runs()))):  # an observed run may have lost its marker
            if RUN_ID.fullmatch(run_id):
                paths = RunPaths.of(settings.storage, run_id)
                repairs += _reconcile_run(settings, connection, paths, memory, snapshot, owners)
    return repairs


def _reconcile_run(  # noqa: PLR0917
    settings: Settings,
    connection: redis.Redis,
    paths: RunPaths,
    memory: ReconcilerMemory,
    snapshot: "QueueSnapshot",
    owners: OwnerRuns | None,
) -> list[Repair]:
    repairs: list[Repair] = []
    try:
        before = read_state(paths)
        if before.state in ("scheduled", "paused"):
            after = _queue_if_due(paths, before, owners) or before
        else:
            after = _advance(paths, before, memory, settings.lease_seconds, snapshot.workers)
        if after.state != before.state:
            repairs.append(Repair(paths.run_id, f"{before.state} to {after.state}"))
        if after.has_ended:
            run_state.finalize(paths)
            memory.too_new.pop(after.id, None)
        if after.state != "running":
            memory.heartbeats.pop(after.id, None)
            memory.watched.pop(after.id, None)
        if snapshot.is_missing(after, memory) and read_state(paths).state == after.state:
            queues.enqueue(connection, paths.run_id, after.priority, at_front=after.attempt > 0)
            repairs.append(Repair(paths.run_id, "put into its queue"))
    except UnknownRun:
        run_state.forget_unpublished_draft(paths)
        memory.forget(paths.run_id)
    except (ClusterError, OSError) as error:
        if isinstance(error, StorageAway | OSError):  # its heartbeat was not seen
            memory.heartbeats.pop(paths.run_id, None)
        memory.warn_once(paths.run_id, str(error))
    except redis.RedisError:
        raise
    except Exception as error:  # whatever is wrong with one run, the others are reconciled
        memory.warn_once(paths.run_id, f"{type(error).__name__}: {error}")
    return repairs


@dataclass(frozen=True)
class QueueSnapshot:
    """The runs in each queue and the job workers that Redis knows, read at one moment.

    Attributes:
        waiting: Run ids in each queue, by priority.
        taken: Run ids in each intermediate list, by priority.
        workers: Names of the live job workers.
        versions: Their versions of Nightshift.
    """

    waiting: dict[str, set[str]]
    taken: dict[str, set[str]]
    workers: set[str]
    versions: frozenset[str] = frozenset()

    def is_missing(self, state: RunState, memory: ReconcilerMemory) -> bool:
        """Whether a run should be queued and is not; a taken run counts as queued for `STUCK_SECONDS`."""
        is_waiting = state.id in self.waiting[state.priority]
        if state.needs_queueing and not is_waiting and state.id in self.taken[state.priority]:
            return memory.seconds_unchanged(memory.taken, state.id, state.changed) > STUCK_SECONDS
        memory.taken.pop(state.id, None)
        return state.needs_queueing and not is_waiting and not self._is_too_new(state, memory)

    def _is_too_new(self, state: RunState, memory: ReconcilerMemory) -> bool:
        """Whether a run stays out of its queue, because the job workers are those that did not know all of it.

        It is tried again when other versions are there, such as in the course of a rolling upgrade, else after
        `TOO_NEW_SECONDS`.
        """
        if state.too_new_for is None:
            return False
        known = memory.too_new.get(state.id)
        seconds = memory.seconds_unchanged(memory.too_new, state.id, self.versions)
        if known is None or known.value != self.versions:
            return self.versions <= {state.too_new_for}
        if seconds > TOO_NEW_SECONDS:
            memory.too_new.pop(state.id)
            memory.seconds_unchanged(memory.too_new, state.id, self.versions)
            return False
        return True


def _advance(
    paths: RunPaths, state: RunState, memory: ReconcilerMemory, lease_seconds: float, workers: set[str]
) -> RunState:
    if state.state == "running":
        return _mark_dead(paths, state, memory, lease_seconds) or _release_watch(paths, state, memory, workers) or state
    return state


def _queue_if_due(paths: RunPaths, state: RunState, owners: OwnerRuns | None) -> RunState | None:
    """Queue a run that nothing blocks any more; cancel one that waits for a run which will never succeed."""
    request = read_request(paths)
    storage = paths.storage
    blocker = start_blocker(storage, request)
    if blocker is None and owners is not None:
        blocker = owners.queue_blocker(state)
    with changing(paths) as now:
        if now.state != state.state:
            return None
        if blocker and blocker.never:
            return write_state(paths, now.with_state("cancelled", blocker.why))
        if blocker:
            return write_state(paths, now.with_state(now.state, blocker.why)) if now.why != blocker.why else now
        if owners is not None:
            owners.add_queued(now)
        return write_state(paths, now.with_state("queued"))


def _mark_dead(paths: RunPaths, state: RunState, memory: ReconcilerMemory, lease_seconds: float) -> RunState | None:
    """Mark an attempt dead whose heartbeat has not changed for `lease_seconds` of this process's monotonic clock."""
    seconds = memory.seconds_unchanged(memory.heartbeats, paths.run_id, (state.attempt, heartbeat_of(paths)))
    if seconds < lease_seconds:
        return None
    marked = mark_dead(paths, state.attempt, no_heartbeat(lease_seconds))
    memory.heartbeats.pop(paths.run_id, None)  # only now: if the run's lock is held, the next call tries it again
    log.warning("%s: attempt %d sent no heartbeat for %.0f seconds", paths.run_id, state.attempt, seconds)
    return marked


def _release_watch(paths: RunPaths, state: RunState, memory: ReconcilerMemory, workers: set[str]) -> RunState | None:
    """Release a run on another cluster whose job worker is gone, so that another job worker can watch it."""
    if state.place == THIS_MACHINE or state.job_worker is None or state.job_worker in workers:
        memory.watched.pop(state.id, None)
        return None
    if memory.seconds_unchanged(memory.watched, state.id, state.job_worker) < STUCK_SECONDS:
        return None
    release_watch(paths, state.job_worker)
    return read_state(paths)


def reconciler_thread(settings: Settings, name: str) -> LeaderLock:
    """Return the thread that reconciles while job workers work; every `FULL_EVERY_SECONDS` it looks at every run."""
    memory, last_full, is_away = ReconcilerMemory(), float("-inf"), False

    def reconcile_and_submit(connection: redis.Redis) -> None:
        nonlocal memory, last_full, is_away
        try:
            refuse_away(settings.runs)
        except StorageAway as error:
            if not is_away:
                log.warning("%s; no run is queued, started or marked dead meanwhile", error)
            memory, last_full, is_away = ReconcilerMemory(), float("-inf"), True
            return
        if is_away:
            log.warning("the storage %s is back", settings.storage)
            is_away = False
        every_run = time.monotonic() - last_full > FULL_EVERY_SECONDS
        last_full = time.monotonic() if every_run else last_full
        if every_run:
            deletion.sweep(settings.storage)
        reconcile(settings, connection, memory, every_run=every_run)
        submit_due(settings)

    return LeaderLock(settings, "reconciler", name, reconcile_and_submit, TICK_SECONDS)
