"""What the page shows of all runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cluster.run_paths import RUN_ID
from jobs.errors import InvalidOption
from jobs.runs import state as run_state
from jobs.runs.damage import shown_or
from jobs.runs.progress_text import describe, duration, total_and_completed
from jobs.runs.record import entry_json, running_progress
from jobs.runs.run_filter import KINDS, Filter, age_seconds
from jobs.runs.run_index import RunIndex
from jobs.runs.start_forecast import WAITING, pending_states, start_forecast
from jobs.runs.state import RunState

RUNS_SHOWN = 50
COMPARABLE = ("train", "search", "evaluate")  # kinds of runs
STATES = (*run_state.STATES, run_state.DAMAGED)


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run as a row of the list.

    Attributes:
        state: Its state.
        progress: The last progress report of a running run.
        doing: What it does or waits for, or why it is in its state.
        share: The completed part of a running run, 0 to 1; None while unknown.
    """

    state: RunState
    progress: Mapping[str, Any]
    doing: str
    share: float | None

    @property
    def age(self) -> str:
        """Time since the run was submitted."""
        return duration(age_seconds(self.state))

    @property
    def is_comparable(self) -> bool:
        """Whether the run may have a model or an evaluation."""
        return self.state.state == "succeeded" and self.state.kind in COMPARABLE

    @property
    def metric(self) -> str:
        """The metric that people compare runs by, "" before the run has one."""
        return self.state.metric_text


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A page of the list of runs.

    Attributes:
        rows: The newest runs that match, at most `RUNS_SHOWN`.
        wanted: The filter, by the name of its field.
        older: Id of the last run on this page if there are more; None if there are none.
    """

    rows: tuple[RunRow, ...]
    wanted: Mapping[str, str]
    older: str | None

    @property
    def has_comparable(self) -> bool:
        """Whether there are two runs to compare."""
        return sum(row.is_comparable for row in self.rows) > 1

    def to_json(self) -> dict[str, Any]:
        """Return the page as JSON: the runs as `nightshift list --json` prints them."""
        return {"runs": [entry_json(row.state, dict(row.progress)) for row in self.rows], "older": self.older}


def overview(index: RunIndex, query: Mapping[str, str], *, are_paused: Callable[[], bool] = bool) -> Overview:
    """Return the page of runs that a query asks for.

    Args:
        index: The runs.
        query: `state`, `kind`, `name`, `tag` and `owner` filter; `before` is the id of the last run on the page before.
        are_paused: Says whether the queues are paused; asked only if a run waits.

    Raises:
        InvalidOption: A value is none of those that exist.
    """
    wanted = {name: query[name].strip() for name in ("state", "kind", "name", "tag", "owner") if query.get(name)}
    before = query.get("before") or None
    _check("state", wanted.get("state"), STATES)
    _check("kind", wanted.get("kind"), KINDS)
    if before is not None and not RUN_ID.fullmatch(before):
        raise InvalidOption(f"before={before!r} is not a run id; follow the link to older runs")
    found = Filter(
        state=wanted.get("state"),
        kind=wanted.get("kind"),
        name=wanted.get("name"),
        tags=(wanted["tag"],) if "tag" in wanted else (),
        owner=wanted.get("owner"),
    )
    matching = list(islice(index.states(found, before=before), RUNS_SHOWN + 1))
    index.save()
    storage = index.storage
    pending = pending_states(storage) if any(state.state == "queued" for state in matching) else ()
    shown = matching[:RUNS_SHOWN]
    paused = any(state.state in WAITING for state in shown) and are_paused()
    rows = tuple(run_row(storage, state, pending, paused=paused) for state in shown)
    return Overview(rows=rows, wanted=wanted, older=rows[-1].state.id if len(matching) > RUNS_SHOWN else None)


def run_row(
    storage: Path, state: RunState, pending: Sequence[RunState] | None = None, *, paused: bool = False
) -> RunRow:
    """Return a run as a row.

    Args:
        storage: The storage.
        state: The run.
        pending: What `pending_states` returned, for the forecast of a queued run; None reads it.
        paused: Whether the queues are paused.
    """
    warnings = list[str]()
    progress = running_progress(storage, state)
    unknown: tuple[str, float | None] = ("", None)
    doing, share = shown_or(unknown, "progress.json", warnings, lambda: _progress(state, progress))
    if state.state in WAITING:
        doing = start_forecast(storage, state, pending, paused=paused)
    text = doing or "; ".join(warnings) or state.reason
    return RunRow(state=state, progress=progress, doing=" ".join(text.split()), share=share)


def _progress(state: RunState, progress: dict[str, Any]) -> tuple[str, float | None]:
    """Return what a running run does, and the completed share."""
    if state.state != "running":
        return "", None
    total, completed = total_and_completed(state, progress)
    return describe(state, progress), min(1.0, max(0.0, completed / total)) if total else None


def _check(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidOption(f"{name}={value!r} is not one of {', '.join(choices)}; choose one of them")
