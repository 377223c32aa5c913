"""Run one run, from its claim to its end, in the job worker's work-horse. Needs the run's folder, never Redis."""

import logging
import time
from dataclasses import dataclass

from cluster.errors import ClusterUnreachable, LaunchError, LeaseLost, NewerVersion, StorageError
from cluster.exit_codes import ExitCode
from cluster.files import is_damage
from cluster.launch import THIS_MACHINE, Launcher, RunningTrainer
from cluster.lease import HEARTBEAT_SECONDS, Lease, latest_attempt
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.stop_request import StopRequest
from cluster.version import VERSION
from cluster.windows import TimeWindow, local_now
from jobs.queue.hang import ProgressWatch
from jobs.runs import state as run_state
from jobs.runs.outcomes import Change, end, lost, mark_succeeded
from jobs.runs.owner_limit import owner_slot
from jobs.runs.request import JobRequest, read_request
from jobs.runs.state import RunState, changing, write_state
from jobs.runs.waits import StartBlocker, start_blocker

log = logging.getLogger("nightshift.tasks")

POLL_SECONDS = 0.5
CLUSTER_SECONDS = 60.0  # how long to retry a cluster that does not answer before the run goes back to the queue
STOP_PATIENCE_SECONDS = 1.0  # for the lock of the stop request, which is asked for again
STOP_SECONDS = 120.0  # from the stop request until a trainer that saves no checkpoint is killed


def run(settings: Settings, launcher: Launcher, run_id: str, *, job_worker: str) -> None:
    """Claim a queued run, start its trainer, and record how it ended; a run that is not queued is left alone.

    Raises:
        NewerVersion: A newer version of Nightshift wrote the run's files; the run stays queued.
    """
    paths = RunPaths.of(settings.storage, run_id)
    claimed = claim_run(paths, job_worker, launcher.place, runs_per_owner=settings.runs_per_owner)
    if claimed is None:
        log.info("%s is not queued, or has to wait; nothing to do", run_id)
        return
    lease = claimed.lease
    try:
        running = launcher.attach(paths, lease.attempt) if claimed.already_running else _start(launcher, paths, lease)
    except ClusterUnreachable as error:
        end(paths, lease, Change("queued", str(error)))
        return
    except LaunchError as error:
        end(paths, lease, lost(paths, lease.attempt, str(error)))
        return
    heartbeat_seconds = min(HEARTBEAT_SECONDS, settings.lease_seconds / 4)
    try:
        held = lease.held_seconds() if claimed.already_running else 0.0
        progress = ProgressWatch(paths, lease.attempt, settings.hang_seconds, on_cluster=launcher.place != THIS_MACHINE)
        how = _AttemptWatcher(paths, lease, claimed.request, running, heartbeat_seconds, held, progress).wait_for_end()
    except LeaseLost as error:
        log.warning("%s", error)
        running.kill()
        return
    end(paths, lease, how)
    if how == ExitCode.NEWER_VERSION:
        raise NewerVersion(f"{run_state.read_state(paths).why}; it waits for a job worker of that version")


def _start(launcher: Launcher, paths: RunPaths, lease: Lease) -> RunningTrainer:
    """Start the trainer; retry for `CLUSTER_SECONDS` while the cluster does not answer."""
    until = time.monotonic() + CLUSTER_SECONDS
    while True:
        try:
            return launcher.start(paths, lease.attempt)
        except ClusterUnreachable:
            if time.monotonic() > until or StopRequest.read(paths.stop, lease.attempt):
                raise
            lease.heartbeat()
            time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class ClaimedRun:
    """An attempt that a job worker has claimed.

    Attributes:
        lease: The attempt's right to publish.
        request: How and when the run was submitted to start.
        already_running: Whether its trainer is running already and only needs a job worker to watch it.
    """

    lease: Lease
    request: JobRequest
    already_running: bool = False


def claim_run(paths: RunPaths, job_worker: str, place: str, *, runs_per_owner: int | None = None) -> ClaimedRun | None:
    """Claim the next attempt of a queued run, or an unwatched running attempt; otherwise return None."""
    with changing(paths) as state:
        try:
            request = read_request(paths)
        except NewerVersion as error:
            is_waiting = state.state == "queued" or state.needs_watcher
            if is_waiting and (state.why, state.too_new_for) != (str(error), VERSION):
                write_state(paths, state.with_changes(why=str(error), too_new_for=VERSION))
            raise
        except StorageError as error:
            if state.state != "queued" or not is_damage(error):
                raise
            write_state(paths, state.with_state("failed", str(error)))
            return None
        if state.state == "running" and state.job_worker is None and state.place == place:
            write_state(paths, state.with_changes(job_worker=job_worker, why=None, too_new_for=None))
            return ClaimedRun(Lease.join(paths, state.attempt), request, already_running=True)
        if state.state != "queued":
            return None
        if blocker := start_blocker(paths.storage, request):  # its window closed while it waited in the queue
            _send_away(paths, state, blocker)
            return None
        if paths.result.is_file():  # an attempt that was declared dead had published after all
            mark_succeeded(paths, state)
            return None
        return _claim_attempt(paths, state, request, job_worker, place, runs_per_owner=runs_per_owner)


def _claim_attempt(
    paths: RunPaths,
    state: RunState,
    request: JobRequest,
    job_worker: str,
    place: str,
    *,
    runs_per_owner: int | None,
) -> ClaimedRun | None:
    with owner_slot(paths.storage, state, runs_per_owner) as blocker:
        if blocker:
            _send_away(paths, state, blocker)
            return None
        lease = Lease.claim(paths, after=max(latest_attempt(paths), state.attempt))
        StopRequest.remove(paths.stop)
        started = state.started or run_state.now()
        write_state(
            paths,
            state.with_state("running", attempt=lease.attempt, job_worker=job_worker, place=place, started=started),
        )
    return ClaimedRun(lease, request)


def _send_away(paths: RunPaths, state: RunState, blocker: StartBlocker) -> None:
    """Take a run that may not start out of its queue; the reconciler queues it again."""
    write_state(paths, state.with_state("scheduled" if state.attempt == 0 else "paused", blocker.why))


@dataclass
class _AttemptWatcher:
    """Watches one running attempt: sends its heartbeat, enforces its limits of time and the requests to stop it."""

    paths: RunPaths
    lease: Lease
    request: JobRequest
    running: RunningTrainer
    heartbeat_seconds: float
    held_seconds: float  # before this watch
    progress: ProgressWatch
    kill_at: float | None = None
    stop_error: str | None = None  # the last warning
    heartbeat_error: str | None = None  # the last warning; None while heartbeats are written

    def wait_for_end(self) -> int | Change:
        """Return the trainer's exit code, or the change of the run if the trainer hung and was killed.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        started = last_heartbeat = time.monotonic()
        while (code := self.running.wait(POLL_SECONDS)) is None:
            now = time.monotonic()
            if now - last_heartbeat >= self.heartbeat_seconds:
                last_heartbeat = now
                self._send_heartbeat()
            self._check_time_limits(self.held_seconds + now - started)
            self._enforce_stop(now)
            if cause := self.progress.hang():
                return self._end_hang(cause)
        return code

    def _end_hang(self, cause: str) -> Change:
        log.warning("%s: attempt %d made %s", self.paths.run_id, self.lease.attempt, cause)
        self.running.dump_stacks()
        self.running.kill()
        return lost(self.paths, self.lease.attempt, cause)

    def _send_heartbeat(self) -> None:
        try:
            self.lease.check()
            if not self.running.sends_own_heartbeat:
                self.lease.heartbeat()
        except (OSError, StorageError) as error:  # a pause of the storage is no reason to end a run
            if self.heartbeat_error != (why := _why(error)):
                self.heartbeat_error = why
                log.warning("%s: its heartbeat cannot be written: %s", self.paths.run_id, why)
            return
        if self.heartbeat_error is not None:
            self.heartbeat_error = None
            log.warning("%s: its heartbeat is written again", self.paths.run_id)

    def _check_time_limits(self, seconds: float) -> None:
        limit, window = self.request.max_duration_seconds, self.request.window
        if limit and seconds > limit:
            self._request_stop("overtime")
        elif window and not TimeWindow.parse(window).closes(local_now(self.request.timezone)):
            self._request_stop("window")

    def _request_stop(self, reason: str) -> None:
        """Ask the trainer to stop; called again until it has ended, so a pause of the storage only delays it."""
        try:
            StopRequest(reason, self.lease.attempt).publish(self.paths.stop, patience=STOP_PATIENCE_SECONDS)
        except (OSError, StorageError) as error:
            if self.stop_error != (why := _why(error)):
                self.stop_error = why
                log.warning("%s: its stop request (%s) cannot be written yet: %s", self.paths.run_id, reason, why)

    def _enforce_stop(self, now: float) -> None:
        try:
            request = StopRequest.read(self.paths.stop, self.lease.attempt)
        except (OSError, StorageError):  # the storage does not answer, of which the heartbeat warns
            return
        if request is None:
            return
        self.kill_at = self.kill_at or now + (STOP_SECONDS if request.seconds is None else request.seconds)
        if request.now or now >= self.kill_at:
            self.running.kill()


def _why(error: Exception) -> str:
    """Return why a file cannot be written, without its name: drafts have a new one each time."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
