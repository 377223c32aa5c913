"""Sees that every run gets what it is owed: queues what should be queued, wakes what waits, buries what is dead.

The run folders are the truth. Whatever Redis forgot, lost or has twice is put right from them, so that a Redis
emptied in mid-flight costs nothing. Every step may be taken twice and by several keepers at once.
"""

import logging
import time
from dataclasses import dataclass, field

import redis

from cluster.errors import StorageError, UnknownRun
from cluster.launch import THIS_MACHINE
from cluster.lease import heartbeat_of
from cluster.run_paths import RUN_ID, RunPaths
from cluster.settings import Settings
from jobs.queue import queues
from jobs.queue.leader_lock import LeaderLock
from jobs.queue.schedules import submit_due
from jobs.queue.worker_list import live_workers
from jobs.runs import state as run_state
from jobs.runs.outcomes import mark_dead, release_watch
from jobs.runs.request import PRIORITIES, read_request
from jobs.runs.state import RunState, changing, read_state, write_state
from jobs.runs.waits import start_blocker

log = logging.getLogger("nightshift.keeper")

TICK_SECONDS = 2.0
STUCK_SECONDS = 60.0  # a run that a worker took and did not begin for so long was dropped
FULL_EVERY_SECONDS = 60.0


@dataclass
class Observation:
    """What was last seen of something that should change, and since when, by this process's own clock."""

    seen: object
    since: float


@dataclass
class ReconcilerMemory:
    """What one keeper remembers from tick to tick."""

    beats: dict[str, Observation] = field(default_factory=dict)
    taken: dict[str, Observation] = field(default_factory=dict)
    watched: dict[str, Observation] = field(default_factory=dict)
    complaints: dict[str, str] = field(default_factory=dict)

    def warn_once(self, run_id: str, line: str) -> None:
        """Log a run that cannot be looked after, once for each cause."""
        if self.complaints.get(run_id) != line:
            self.complaints[run_id] = line
            log.warning("%s is left alone: %s", run_id, line)

    def runs(self) -> set[str]:
        """Return the runs of which something is remembered."""
        return {*self.beats, *self.taken, *self.watched}

    def unchanged_since(self, moment: float) -> set[str]:
        """Return the runs of which something has not changed since a moment of this process's clock."""
        known = (self.beats, self.taken, self.watched)
        return {run_id for what in known for run_id, watched in what.items() if watched.since <= moment}

    def forget(self, run_id: str) -> None:
        """Forget a run that is no more."""
        for what in (self.beats, self.taken, self.watched):
            what.pop(run_id, None)

    def seconds_unchanged(self, known: dict[str, Observation], key: str, value: object) -> float:
        """Return for how many seconds `value` has not changed."""
        if key not in known or known[key].seen != value:
            known[key] = Observation(value, time.monotonic())
        return time.monotonic() - known[key].since


@dataclass(frozen=True)
class Repair:
    """What was put right."""

    run_id: str
    what: str


def reconcile(
    settings: Settings, connection: redis.Redis, memory: ReconcilerMemory, *, every_run: bool = False
) -> list[Repair]:
    """Put right what can be put right now and return it; call it again and again, with the same memory.

    Raises:
        redis.RedisError: Redis went away in between; nothing is lost.
    """
    places = QueueSnapshot(
        waiting={priority: set(queues.waiting(connection, priority)) for priority in PRIORITIES},
        taken={priority: set(queues.taken(connection, priority)) for priority in PRIORITIES},
        workers={worker.name for worker in live_workers(connection)},
    )
    repairs: list[Repair] = []
    listed = run_state.all_ids(settings.storage) if every_run else run_state.pending_ids(settings.storage)
    for run_id in dict.fromkeys((*listed, *sorted(memory.runs()))):  # what is watched may have lost its marker
        if RUN_ID.fullmatch(run_id):
            repairs += _reconcile_run(settings, connection, RunPaths.of(settings.storage, run_id), memory, places)
    return repairs


def _reconcile_run(
    settings: Settings, connection: redis.Redis, paths: RunPaths, memory: ReconcilerMemory, places: "QueueSnapshot"
) -> list[Repair]:
    repairs: list[Repair] = []
    try:
        before = read_state(paths)
        after = _advance(paths, before, memory, settings.lease_seconds, places.workers)
        if after.state != before.state:
            repairs.append(Repair(paths.run_id, f"{before.state} to {after.state}"))
        if after.has_ended:
            run_state.finalize(paths)
        if after.state != "running":
            memory.beats.pop(after.id, None)
            memory.watched.pop(after.id, None)
        if places.lack(after, memory) and read_state(paths).state == after.state:
            queues.enqueue(connection, paths.run_id, after.priority, at_front=after.attempt > 0)
            repairs.append(Repair(paths.run_id, "put into its queue"))
    except UnknownRun:
        run_state.forget_unpublished_draft(paths)
        memory.forget(paths.run_id)
    except (StorageError, OSError) as error:
        memory.warn_once(paths.run_id, str(error))
    return repairs


@dataclass(frozen=True)
class QueueSnapshot:
    """Where Redis has which runs, by priority, and which job workers it knows, at one moment."""

    waiting: dict[str, set[str]]
    taken: dict[str, set[str]]
    workers: set[str]

    def lack(self, state: RunState, memory: ReconcilerMemory) -> bool:
        """Whether a run stands nowhere and should; one that a worker took and never begins counts after a while."""
        stands = state.id in self.waiting[state.priority]
        if state.needs_queueing and not stands and state.id in self.taken[state.priority]:
            return memory.seconds_unchanged(memory.taken, state.id, state.changed) > STUCK_SECONDS
        memory.taken.pop(state.id, None)
        return state.needs_queueing and not stands


def _advance(
    paths: RunPaths, state: RunState, memory: ReconcilerMemory, lease_seconds: float, workers: set[str]
) -> RunState:
    if state.state in ("scheduled", "paused"):
        return _queue_if_due(paths, state) or state
    if state.state == "running":
        return _mark_dead(paths, state, memory, lease_seconds) or _release_watch(paths, state, memory, workers) or state
    return state


def _queue_if_due(paths: RunPaths, state: RunState) -> RunState | None:
    """Queue a run whose time has come; end one that waits for a run which will never succeed."""
    request = read_request(paths)
    storage = paths.storage
    verdict = start_blocker(storage, request)
    with changing(paths) as now:
        if now.state != state.state:
            return None
        if verdict and verdict.never:
            return write_state(paths, now.with_state("cancelled", verdict.why))
        if verdict:
            return write_state(paths, now.with_state(now.state, verdict.why)) if now.why != verdict.why else now
        return write_state(paths, now.with_state("queued"))


def _mark_dead(paths: RunPaths, state: RunState, memory: ReconcilerMemory, lease_seconds: float) -> RunState | None:
    """Take a run from an attempt whose heart has stood still for `lease_seconds` of our own clock."""
    still = memory.seconds_unchanged(memory.beats, paths.run_id, (state.attempt, heartbeat_of(paths)))
    if still < lease_seconds:
        return None
    memory.beats.pop(paths.run_id, None)
    log.warning("%s: attempt %d showed no life for %.0f seconds", paths.run_id, state.attempt, still)
    return mark_dead(paths, state.attempt, f"no sign of life for {lease_seconds:.0f} s")


def _release_watch(paths: RunPaths, state: RunState, memory: ReconcilerMemory, workers: set[str]) -> RunState | None:
    """Find a run that goes on elsewhere while the job worker that watched it is no more."""
    if state.place == THIS_MACHINE or state.job_worker is None or state.job_worker in workers:
        memory.watched.pop(state.id, None)
        return None
    if memory.seconds_unchanged(memory.watched, state.id, state.job_worker) < STUCK_SECONDS:
        return None
    release_watch(paths, state.job_worker)
    return read_state(paths)


def reconciler_thread(settings: Settings, name: str) -> LeaderLock:
    """Return the role of reconciling while job workers work; now and then it looks at every run."""
    memory, last_full = ReconcilerMemory(), float("-inf")

    def keep(connection: redis.Redis) -> None:
        nonlocal last_full
        every_run = time.monotonic() - last_full > FULL_EVERY_SECONDS
        last_full = time.monotonic() if every_run else last_full
        if every_run:
            run_state.sweep(settings.storage)
        reconcile(settings, connection, memory, every_run=every_run)
        submit_due(settings)

    return LeaderLock(settings, "keeper", name, keep, TICK_SECONDS)
