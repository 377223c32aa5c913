"""Preemption: the cluster announces that it is about to take away a node of this training."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

POLL_SECONDS = 2.0  # a spot instance gets at least 30 seconds of notice


class PreemptionNotice(Protocol):
    """The part of Ray Train's `PreemptionInfo` that is used here."""

    @property
    def preempted_node_ids(self) -> list[str]:
        """The nodes that are about to be taken away."""


@dataclass
class PreemptionWatcher:
    """Polls Ray Train for preemption notices and remembers the nodes that were announced already.

    Attributes:
        get_notice: Returns the current notice. It is a collective call: rank 0 decides when all ranks make it.
    """

    get_notice: Callable[[], PreemptionNotice | None] = lambda: None
    _known_nodes: frozenset[str] = frozenset()
    _polled_at: float = float("-inf")

    def should_poll(self) -> bool:
        """Return whether it is time for the next poll; called on rank 0."""
        return time.monotonic() - self._polled_at >= POLL_SECONDS

    def poll(self) -> bool:
        """Poll, and return whether a node was announced that was not known before; every rank must call this."""
        notice = self.get_notice()
        self._polled_at = time.monotonic()
        nodes = frozenset(notice.preempted_node_ids) if notice else frozenset[str]()
        new = nodes - self._known_nodes
        self._known_nodes |= nodes
        return bool(new)
