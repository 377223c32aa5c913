"""How many runs of one owner may run at the same time (`NIGHTSHIFT_RUNS_PER_OWNER`).

A run above the limit leaves its queue, so that it keeps no other run waiting, and the reconciler queues it again when
one of its owner's runs has ended. Runs of earlier versions, without an owner, and RayJobs, which start by themselves,
neither count nor wait.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import StorageError, UnknownRun
from cluster.files import locked
from cluster.run_paths import RunPaths
from jobs.runs.state import PRIORITIES, RunState, pending_ids, read_state
from jobs.runs.waits import StartBlocker

LOCK_SECONDS = 10.0


@dataclass
class OwnerRuns:
    """The running and the queued runs of each owner.

    Attributes:
        limit: How many may run at the same time.
        running: Number of running runs, by owner.
        queued: Number of queued runs of each priority, by owner.
        priorities: Of all runs that have not ended, by id, as an index into `PRIORITIES`.
    """

    limit: int
    running: Counter[str] = field(default_factory=Counter)
    queued: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    priorities: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, storage: Path, limit: int) -> "OwnerRuns":
        """Read the runs that have not ended; damaged ones are left out."""
        found = cls(limit)
        for run_id in pending_ids(storage):
            try:
                state = read_state(RunPaths.of(storage, run_id))
            except (StorageError, UnknownRun):
                continue
            found.priorities[run_id] = PRIORITIES.index(state.priority)
            if state.state == "running" and is_limited(state):
                found.running[str(state.owner)] += 1
            if state.state == "queued" and state.too_new_for is None:
                found.add_queued(state)
        return found

    def add_queued(self, state: RunState) -> None:
        """Count one more queued run."""
        if is_limited(state):
            self.queued[str(state.owner)][PRIORITIES.index(state.priority)] += 1

    def start_blocker(self, state: RunState) -> StartBlocker | None:
        """Return why a run may not start now: its owner has too many running.

        None if a slot is free.
        """
        owner = str(state.owner)
        if not is_limited(state) or self.running[owner] < self.limit:
            return None
        return StartBlocker(f"waits: {owner} has {self.running[owner]} of {self.limit} runs running")

    def queue_blocker(self, state: RunState) -> StartBlocker | None:
        """Return why a run may not be queued now: its owner's queued runs take the free slots.

        Queued runs of a lower priority do not count: perhaps no job worker serves their queue.
        """
        if blocker := self.start_blocker(state):
            return blocker
        owner, own = str(state.owner), PRIORITIES.index(state.priority)
        before = sum(count for priority, count in self.queued[owner].items() if priority <= own)
        if not is_limited(state) or self.running[owner] + before < self.limit:
            return None
        return StartBlocker(
            f"waits: {owner} has {self.running[owner]} of {self.limit} runs running and {before} in the queue"
        )


def is_limited(state: RunState) -> bool:
    """Whether a run counts for the limit of its owner."""
    return state.owner is not None and not state.own_cluster


@contextmanager
def owner_slot(storage: Path, state: RunState, limit: int | None) -> Iterator[StartBlocker | None]:
    """Yield why a run may not start now, or None; until the block ends no other run of the storage takes the slot.

    Raises:
        StorageError: Another process has held the lock for `LOCK_SECONDS`; the run stays queued.
    """
    if limit is None or not is_limited(state):
        yield None
        return
    with locked(storage / "owners.lock", patience=LOCK_SECONDS):
        yield OwnerRuns.read(storage, limit).start_blocker(state)
