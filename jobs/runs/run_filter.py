"""Which runs a list of runs shows."""

from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from jobs.runs.state import RunState

KINDS = ("train", "evaluate", "search", "predict", "export")


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

    state: str | None
    kind: str | None
    name: str | None
    tags: tuple[str, ...]
    owner: str | None
    since_seconds: float | None

    def is_recent(self, run: RunState) -> bool:
        """Whether the run was submitted in the time asked for; runs come newest first."""
        return self.since_seconds is None or age_seconds(run) <= self.since_seconds

    def matches(self, run: RunState) -> bool:
        """Whether all else that was asked for is true of the run."""
        pattern = None if self.name is None else self.name if set("*?") & set(self.name) else f"*{self.name}*"
        return (
            self.state in (None, run.state)
            and self.kind in (None, run.kind)
            and self.owner in (None, run.owner)
            and set(self.tags) <= set(run.tags)
            and (pattern is None or fnmatchcase(run.name or "", pattern))
        )


def age_seconds(state: RunState) -> float:
    """Return the time since a run was submitted, in seconds."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(state.created)).total_seconds())
