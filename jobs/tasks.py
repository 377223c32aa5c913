"""Run one run, from its claim to its end: what the job worker's horse does. Needs the run's folder, never Redis."""

import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster import guard
from cluster.errors import LaunchError, LeaseLost, StorageError
from cluster.files import read_json, write_json
from cluster.launch import Launcher, LocalLauncher, Running
from cluster.lease import BEAT_SECONDS, Lease, latest_attempt, revoke
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.windows import Window
from jobs import ledger
from jobs.ledger import RunState, changing, write_state
from jobs.request import JobRequest

log = logging.getLogger("nightshift.tasks")

POLL_SECONDS = 0.5
STOP_SECONDS = 120.0  # from the wish to stop until a trainer that saves no checkpoint is ended
SUCCEEDED, FAULT, USAGE, STOPPED = 0, 1, 2, 3  # exit codes of `python -m trainer`
STATE_AFTER_STOP: dict[str, tuple[ledger.State, str]] = {
    "cancel": ("cancelled", "cancelled after a checkpoint"),
    "drain": ("queued", "handed back by a job worker that was stopped"),
    "window": ("paused", "its window closed"),
    "overtime": ("failed", "stopped after a checkpoint: --max-duration is over; `nightshift resume` goes on"),
}


def run_job(run_id: str) -> None:
    """Run a run here and now; the one function that an entry of the queue may name."""
    run(Settings.read(), LocalLauncher(), run_id, job_worker="by hand")


def run(settings: Settings, launcher: Launcher, run_id: str, *, job_worker: str) -> None:
    """Claim a queued run, have it trained, and write down how it ended; one that is not queued is left alone."""
    paths = RunPaths.of(settings.storage, run_id)
    begun = _begin(paths, job_worker)
    if begun is None:
        log.info("%s is not queued any more; nothing to do", run_id)
        return
    lease, wanted = begun
    try:
        running = launcher.start(paths, lease.attempt)
    except LaunchError as error:
        _end(paths, lease, lost(paths, lease.attempt, str(error)))
        return
    try:
        code = _Watch(paths, lease, wanted, running).until_it_ends()
    except LeaseLost as error:
        log.warning("%s", error)
        running.kill()
        return
    _end(paths, lease, outcome(paths, lease.attempt, code))


def _begin(paths: RunPaths, job_worker: str) -> tuple[Lease, JobRequest] | None:
    with changing(paths) as state:
        if state.state != "queued":
            return None
        wanted = JobRequest.model_validate(read_json(paths.job))
        lease = Lease.claim(paths, after=latest_attempt(paths))
        paths.stop.unlink(missing_ok=True)  # it was meant for an attempt that is over
        write_state(
            paths,
            state.moved("running", attempt=lease.attempt, job_worker=job_worker, started=state.started or ledger.now()),
        )
        return lease, wanted


@dataclass
class _Watch:
    """Sees to one running attempt: its beat, its time, the wishes to stop it."""

    paths: RunPaths
    lease: Lease
    wanted: JobRequest
    running: Running
    kill_at: float | None = None

    def until_it_ends(self) -> int:
        """Return the trainer's exit code.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        begun = beaten = time.monotonic()
        while (code := self.running.wait(POLL_SECONDS)) is None:
            now = time.monotonic()
            if now - beaten >= BEAT_SECONDS:
                beaten = now
                self.lease.check()
                if not self.running.beats_for_itself:
                    self.lease.beat()
            self._see_to_time(now - begun)
            self._see_to_stop(now)
        return code

    def _see_to_time(self, seconds: float) -> None:
        limit, window = self.wanted.max_duration_seconds, self.wanted.window
        if limit and seconds > limit:
            ask_to_stop(self.paths, "overtime", self.lease.attempt)
        elif window and not Window.parse(window).closes(datetime.now().astimezone()):
            ask_to_stop(self.paths, "window", self.lease.attempt)

    def _see_to_stop(self, now: float) -> None:
        if not (wish := stop_wish(self.paths, self.lease.attempt)):
            return
        self.kill_at = self.kill_at or now + float(wish.get("seconds", STOP_SECONDS))
        if wish.get("now") or now >= self.kill_at:
            self.running.kill()


def ask_to_stop(paths: RunPaths, reason: str, attempt: int, **more: float | bool) -> None:
    """Ask an attempt to save a checkpoint and stop; an earlier wish stands, but a cancel goes before all others."""
    earlier = stop_wish(paths, attempt)
    if earlier and not (reason == "cancel" and (more or earlier["reason"] != "cancel")):
        return
    # To the trainer a window and overtime are the same; it knows cancel, drain and window.
    write_json(paths.stop, {"reason": reason, "attempt": attempt, **more})


def stop_wish(paths: RunPaths, attempt: int) -> dict[str, Any] | None:
    """Return the wish to stop an attempt, if there is one."""
    if not paths.stop.exists():
        return None
    with contextlib.suppress(StorageError):
        wish = read_json(paths.stop)
        if wish.get("attempt") in (None, attempt):
            return dict(wish)
    return None


def outcome(paths: RunPaths, attempt: int, code: int) -> "Change":
    """Return what an attempt's exit code means for its run."""
    wish = stop_wish(paths, attempt)
    if code == SUCCEEDED:
        if paths.result.exists():
            return Change("succeeded", None)
        return Change("failed", "the trainer ended without a result; `nightshift logs` shows what it said")
    if code in (FAULT, USAGE):
        return Change("failed", _error_line(paths, attempt))
    if wish and (code == STOPPED or wish.get("now") or code > guard.STATUS_OF_SIGNAL):
        state, why = STATE_AFTER_STOP[str(wish["reason"])]
        return Change(
            state, why if code == STOPPED else f"{why.partition(' after a checkpoint')[0]}, its process ended"
        )
    return lost(paths, attempt, _cause(code))


@dataclass(frozen=True)
class Change:
    """A state to move to and why."""

    state: ledger.State
    why: str | None
    is_loss: bool = False


def lost(paths: RunPaths, attempt: int, cause: str) -> Change:
    """Return what it means that the infrastructure took an attempt: another one, or the end when retries are spent."""
    wanted, state = JobRequest.model_validate(read_json(paths.job)), ledger.read_state(paths)
    if state.losses < wanted.retries:
        return Change("queued", f"attempt {attempt} was lost ({cause}); the next goes on from its checkpoint", True)
    return Change("lost", f"{cause}; {wanted.retries} retries are spent, `nightshift retry` tries again", True)


def _end(paths: RunPaths, lease: Lease, change: Change) -> None:
    with contextlib.suppress(LeaseLost), changing(paths) as state:
        lease.check()
        _write_end(paths, state, change)


def declare_dead(paths: RunPaths, attempt: int, cause: str) -> RunState | None:
    """Take a run from an attempt that shows no life; None when it was not the run's attempt any more."""
    with changing(paths) as state:
        if state.state != "running" or state.attempt != attempt:
            return None
        revoke(paths, attempt)
        if paths.result.exists():  # its last act was to publish
            return _write_end(paths, state, Change("succeeded", None))
        return _write_end(paths, state, lost(paths, attempt, cause))


def _write_end(paths: RunPaths, state: RunState, change: Change) -> RunState:
    paths.stop.unlink(missing_ok=True)
    losses = state.losses + int(change.is_loss)
    return write_state(paths, state.moved(change.state, change.why, losses=losses, metric=_metric(paths)))


def _metric(paths: RunPaths) -> tuple[str, float] | None:
    if not paths.result.exists():
        return None
    metrics = read_json(paths.result).get("metrics") or {}
    for name in ("auroc", "accuracy", "loss"):
        if isinstance(metrics.get(name), int | float):
            return name, float(metrics[name])
    return None


def _error_line(paths: RunPaths, attempt: int) -> str:
    with contextlib.suppress(StorageError):
        error = read_json(paths.error)
        if error.get("attempt") in (None, attempt):
            return " ".join(str(error.get("error", "")).split())
    return "the trainer failed and left no error line; `nightshift logs` shows what it said"


def _cause(code: int) -> str:
    if code > guard.STATUS_OF_SIGNAL:
        return f"signal {code - guard.STATUS_OF_SIGNAL} ended the trainer"
    return f"the trainer ended with exit code {code}"
