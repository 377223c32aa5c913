"""The cluster's notice that a machine of this training is about to be taken away."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

POLL_SECONDS = 2.0  # the notice of a spot machine is 30 seconds at the shortest


class Notice(Protocol):
    """What Ray Train tells, of its `PreemptionInfo`."""

    @property
    def preempted_node_ids(self) -> list[str]:
        """The machines that go."""


@dataclass
class PreemptionWatcher:
    """Looks for a notice now and then, and remembers the machines it has heard of.

    Attributes:
        ask: Returns the notice. It waits for all ranks, so each must ask equally often: the leader says when.
    """

    ask: Callable[[], Notice | None] = lambda: None
    known: frozenset[str] = frozenset()
    looked: float = float("-inf")

    def should_poll(self) -> bool:
        """Return whether it is time to look again; asked on the leader."""
        return time.monotonic() - self.looked >= POLL_SECONDS

    def poll(self) -> bool:
        """Look, and return whether a machine goes that was not known to; every rank must call it."""
        notice = self.ask()
        self.looked = time.monotonic()
        nodes = frozenset(notice.preempted_node_ids) if notice else frozenset[str]()
        fresh = nodes - self.known
        self.known |= nodes
        return bool(fresh)
