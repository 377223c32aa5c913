"""Which runs a list of runs shows."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Literal, Protocol, get_args

Kind = Literal["train", "evaluate", "search", "predict", "export"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Listed(Protocol):
    """What a filter looks at of a run: of its state, or of its row in the index."""

    @property
    def state(self) -> str:
        """Its state."""

    @property
    def kind(self) -> str:
        """Its kind."""

    @property
    def name(self) -> str | None:
        """Its name."""

    @property
    def tags(self) -> Sequence[str]:
        """Its tags."""

    @property
    def owner(self) -> str | None:
        """Who submitted it."""

    @property
    def created(self) -> str:
        """When it was submitted."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which runs to show; None and an empty tuple let every run through.

    Attributes:
        state: Their state.
        kind: Their kind.
        name: A part of their name, or a pattern with * and ?.
        tags: Tags that they all have.
        owner: Who submitted them.
        since_seconds: The longest time since they were submitted.
    """

    state: str | None = None
    kind: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    owner: str | None = None
    since_seconds: float | None = None

    def is_recent(self, run: Listed) -> bool:
        """Whether the run was submitted in the time asked for; runs come newest first."""
        return self.since_seconds is None or age_seconds(run) <= self.since_seconds

    def matches(self, run: Listed) -> bool:
        """Whether all else that was asked for is true of the run."""
        return (
            self.state in (None, run.state)
            and self.kind in (None, run.kind)
            and self.owner in (None, run.owner)
            and (not self.tags or set(self.tags) <= set(run.tags))
            and (self.name is None or fnmatchcase(run.name or "", self._pattern))
        )

    @functools.cached_property
    def _pattern(self) -> str:
        name = self.name or ""
        return name if set("*?") & set(name) else f"*{name}*"


EVERY_RUN = Filter()


def age_seconds(run: Listed) -> float:
    """Return the time since a run was submitted, in seconds."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(run.created)).total_seconds())
