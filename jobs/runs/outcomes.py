"""What the end of an attempt means for its run, by the trainer's exit code or because its heartbeat stopped."""

import contextlib
import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster import guard
from cluster.errors import LeaseLost, NewerVersion, StorageError
from cluster.exit_codes import ExitCode
from cluster.files import is_damage, read_json_object_or_empty
from cluster.lease import Lease, revoke
from cluster.run_paths import RunPaths
from cluster.stop_request import StopRequest
from cluster.version import VERSION
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest, read_request
from jobs.runs.state import RunState, changing, write_state

# What a run failed with by its own fault, where it left no error line.
DEFAULT_ERRORS: dict[int, str | None] = {
    ExitCode.FAILED: None,  # the trainer always leaves one: without it the infrastructure has ended the process
    ExitCode.USAGE: "the trainer refused the run and left no error line; `nightshift logs` shows what it said",
    ExitCode.STORAGE_FULL: "the storage is full; free space there, then `nightshift retry` goes on from the last good "
    "checkpoint",
}
STATE_AFTER_STOP: dict[str, tuple[run_state.State, str]] = {
    "cancel": ("cancelled", "stopped on request"),
    "drain": ("queued", "handed back by a job worker that was stopped"),
    "window": ("paused", "its window closed"),
    "overtime": ("failed", "stopped, because --max-duration is over; `nightshift resume` goes on"),
}


@dataclass(frozen=True)
class Change:
    """The next state of a run and the reason.

    Attributes:
        state: The next state.
        why: The reason, one line for people.
        is_loss: Whether the infrastructure ended the attempt, which counts against the run's retries.
        too_new_for: The version of Nightshift that does not know all of the run's spec.
    """

    state: run_state.State
    why: str | None
    is_loss: bool = False
    too_new_for: str | None = None


def outcome(paths: RunPaths, attempt: int, code: int) -> Change:
    """Return what an attempt's exit code means for its run."""
    if paths.result.is_file():  # the result is published, however the process ended afterwards
        return Change("succeeded", None)
    if code == ExitCode.SUCCEEDED:
        return Change("failed", "the trainer ended without a result; `nightshift logs` shows what it said")
    if code in DEFAULT_ERRORS and (error := _error_line(paths, attempt) or DEFAULT_ERRORS[code]):
        return Change("failed", error)
    if request := StopRequest.read(paths.stop, attempt):
        state, why = STATE_AFTER_STOP[request.reason]
        return Change(state, why if code == ExitCode.STOPPED else f"{why.partition(',')[0]}, its process ended")
    if code == ExitCode.NEWER_VERSION:
        why = _error_line(paths, attempt) or "a newer version wrote the spec; update the job workers"
        return Change("queued", why, too_new_for=VERSION)
    return lost(paths, attempt, _cause(paths, attempt, code))


def lost(paths: RunPaths, attempt: int, cause: str) -> Change:
    """Return what follows when the infrastructure ended an attempt: another attempt, or "lost" without retries left."""
    state = run_state.read_state(paths)
    try:
        retries = read_request(paths).retries
    except NewerVersion:
        retries = JobRequest().retries
    except StorageError as error:
        if not is_damage(error):
            raise
        return Change("lost", f"{cause}; {error}", True)
    if state.losses < retries:
        return Change("queued", f"attempt {attempt} was lost ({cause}); the next goes on from its checkpoint", True)
    spent = {0: "no retry was asked for", 1: "the retry is spent"}.get(retries, f"{retries} retries are spent")
    return Change("lost", f"{cause}; {spent}, `nightshift retry` tries again", True)


def end(paths: RunPaths, lease: Lease, how: int | Change) -> None:
    """Record how an attempt ended, unless a newer attempt owns the run.

    Args:
        paths: The run's files.
        lease: The attempt.
        how: Its exit code, or the change for an attempt that never started or was killed because it hung (ignored if
            it has published its result, or was asked to stop).
    """
    with contextlib.suppress(LeaseLost), changing(paths) as state:
        lease.check()
        revoke(paths, lease.attempt)  # a process of it that still runs, or starts late, publishes nothing from here on
        # Read under the lock: `cancel` holds it too while it writes its request, so no request is missed.
        if isinstance(how, Change) and (paths.result.is_file() or StopRequest.read(paths.stop, lease.attempt)):
            how = ExitCode.UNKNOWN
        _write_end(paths, state, how if isinstance(how, Change) else outcome(paths, lease.attempt, how))


def no_heartbeat(seconds: float) -> str:
    """Return why an attempt is dead that has sent no heartbeat for so long."""
    return f"no heartbeat for {seconds:.0f} s"


def mark_dead(paths: RunPaths, attempt: int, cause: str) -> RunState | None:
    """Take a run from an attempt whose heartbeat stopped; return None if it is not the run's newest attempt."""
    with changing(paths) as state:
        if state.state != "running" or state.attempt != attempt:
            return None
        revoke(paths, attempt)
        return _write_end(paths, state, _recorded_outcome(paths, attempt) or lost(paths, attempt, cause))


def mark_succeeded(paths: RunPaths, state: RunState) -> None:
    """Record that a run has its result; call it inside `changing`."""
    _write_end(paths, state, Change("succeeded", None))


def release_watch(paths: RunPaths, job_worker: str) -> None:
    """Record that no job worker watches a run that keeps running on another cluster."""
    with changing(paths) as state:
        if state.state == "running" and state.job_worker == job_worker:
            write_state(paths, state.with_changes(job_worker=None))


def _recorded_outcome(paths: RunPaths, attempt: int) -> Change | None:
    """Return the outcome that an attempt without a watcher has written into the run's folder, None if it wrote none."""
    if paths.result.is_file():
        return Change("succeeded", None)
    error = _error(paths, attempt)
    if (line := _line_of(error)) and not error.get("retry"):
        return Change("failed", line)
    if request := StopRequest.read(paths.stop, attempt):
        state, why = STATE_AFTER_STOP[request.reason]
        return Change(state, why)
    return None


def _write_end(paths: RunPaths, state: RunState, change: Change) -> RunState:
    losses = state.losses + int(change.is_loss)
    metric, metric_split = _metric(paths) or (None, None)
    after = state.with_state(
        change.state,
        change.why,
        losses=losses,
        metric=metric,
        metric_split=metric_split,
        too_new_for=change.too_new_for,
    )
    written = write_state(paths, after)
    if change.is_loss:
        _log_loss(paths, after)
    StopRequest.remove(paths.stop)  # last: a request whose effect is not recorded yet must stay
    return written


def _log_loss(paths: RunPaths, state: RunState) -> None:
    """Append to the run's log that its attempt was lost, and what follows; the trainer itself could not."""
    moment = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
    line = f"{moment} WARNING {' '.join((state.why or '').split())}\n".encode()
    with contextlib.suppress(OSError), paths.log.open("ab+") as log:  # state.json says it too
        if log.tell():
            log.seek(-1, os.SEEK_END)
            line = line if log.read(1) == b"\n" else b"\n" + line  # the attempt may have been lost within a line
        log.write(line)


def _metric(paths: RunPaths) -> tuple[tuple[str, float], str | None] | None:
    """Return the metric that people compare runs by, and what it is of: a split, or "folds"; None without a result."""
    if not paths.result.is_file():
        return None
    metrics = read_json_object_or_empty(paths.result).get("metrics")
    if not isinstance(metrics, dict):
        return None
    for name in ("auroc", "accuracy", "loss"):
        value = metrics.get(name)
        if isinstance(value, int | float) and abs(value) < run_state.LARGEST_METRIC:
            split = "folds" if "out_of_fold" in metrics else metrics.get("split")
            return (name, float(value)), split if isinstance(split, str) else None
    return None


def _error(paths: RunPaths, attempt: int) -> dict[str, Any]:
    """Return the content of the `error.json` of an attempt, empty without one."""
    found = read_json_object_or_empty(paths.error)
    return found if found.get("attempt") in (None, attempt) else {}


def _line_of(error: dict[str, Any]) -> str:
    return " ".join(str(error.get("error", "")).split())


def _error_line(paths: RunPaths, attempt: int) -> str:
    """Return the line of the error of an attempt, "" without one."""
    return _line_of(_error(paths, attempt))


def _cause(paths: RunPaths, attempt: int, code: int) -> str:
    if code == ExitCode.WORKERS_LOST and (error := _error_line(paths, attempt)):
        return error
    if code == ExitCode.WORKERS_LOST:
        return "the storage did not answer the trainer; `nightshift logs` shows what it said"
    if code == ExitCode.UNKNOWN:
        return "the trainer is gone, and its exit code is unknown"
    if code == ExitCode.FAILED:
        # A library ended the process: Ray does where its GCS is gone.
        return "the trainer ended with exit code 1 and left no error line; `nightshift logs` shows what it said"
    if code > guard.STATUS_OF_SIGNAL:
        return f"signal {code - guard.STATUS_OF_SIGNAL} ended the trainer"
    return f"the trainer ended with exit code {code}"
