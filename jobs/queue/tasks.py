"""Run one run, from its claim to its end: what the job worker's horse does. Needs the run's folder, never Redis."""

import logging
import time
from dataclasses import dataclass
from datetime import datetime

from cluster.errors import ClusterUnreachable, LaunchError, LeaseLost
from cluster.launch import Launcher, LocalLauncher, RunningTrainer
from cluster.lease import HEARTBEAT_SECONDS, Lease, latest_attempt
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.stop_request import StopRequest
from cluster.windows import TimeWindow
from jobs.runs import state as run_state
from jobs.runs.outcomes import Change, end, lost, say_published
from jobs.runs.request import JobRequest, read_request
from jobs.runs.state import changing, write_state
from jobs.runs.waits import blocked_by

log = logging.getLogger("nightshift.tasks")

POLL_SECONDS = 0.5
PLACE_SECONDS = 60.0  # how long a place that does not answer is asked before the run goes back to the queue
STOP_SECONDS = 120.0  # from the wish to stop until a trainer that saves no checkpoint is ended


def run_job(run_id: str) -> None:
    """Run a run here and now; the one function that an entry of the queue may name."""
    run(Settings.read(), LocalLauncher(), run_id, job_worker="by hand")


def run(settings: Settings, launcher: Launcher, run_id: str, *, job_worker: str) -> None:
    """Claim a queued run, have it trained, and write down how it ended; one that is not queued is left alone."""
    paths = RunPaths.of(settings.storage, run_id)
    begun = begin(paths, job_worker, launcher.place)
    if begun is None:
        log.info("%s is not queued any more, or has to wait; nothing to do", run_id)
        return
    lease = begun.lease
    try:
        running = launcher.attach(paths, lease.attempt) if begun.goes_on else _start(launcher, paths, lease)
    except ClusterUnreachable as error:
        end(paths, lease, Change("queued", str(error)))
        return
    except LaunchError as error:
        end(paths, lease, lost(paths, lease.attempt, str(error)))
        return
    heartbeat_seconds = min(HEARTBEAT_SECONDS, settings.lease_seconds / 4)
    try:
        held = lease.held_seconds() if begun.goes_on else 0.0
        code = _Watch(paths, lease, begun.wanted, running, heartbeat_seconds, held).until_it_ends()
    except LeaseLost as error:
        log.warning("%s", error)
        running.kill()
        return
    end(paths, lease, code)


def _start(launcher: Launcher, paths: RunPaths, lease: Lease) -> RunningTrainer:
    """Start the trainer; a place that does not answer is asked again for a while."""
    until = time.monotonic() + PLACE_SECONDS
    while True:
        try:
            return launcher.start(paths, lease.attempt)
        except ClusterUnreachable:
            if time.monotonic() > until or StopRequest.read(paths.stop, lease.attempt):
                raise
            lease.heartbeat()
            time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class Begun:
    """An attempt that a job worker has taken on.

    Attributes:
        lease: Its right to publish.
        wanted: How the run was to be queued.
        goes_on: Whether its trainer runs already and only wants somebody to watch it.
    """

    lease: Lease
    wanted: JobRequest
    goes_on: bool = False


def begin(paths: RunPaths, job_worker: str, place: str) -> Begun | None:
    """Take a run on: claim the next attempt of a queued one, or watch one that goes on unwatched; None of any other."""
    with changing(paths) as state:
        wanted = read_request(paths)
        if state.state == "running" and state.job_worker is None and state.place == place:
            write_state(paths, state.but(job_worker=job_worker))
            return Begun(Lease.join(paths, state.attempt), wanted, goes_on=True)
        if state.state != "queued":
            return None
        if verdict := blocked_by(paths.folder.parent.parent, wanted):  # its window closed while it stood in the queue
            write_state(paths, state.moved("scheduled" if state.attempt == 0 else "paused", verdict.why))
            return None
        if paths.result.exists():  # an attempt that was taken for dead had published after all
            say_published(paths, state)
            return None
        lease = Lease.claim(paths, after=max(latest_attempt(paths), state.attempt))
        paths.stop.unlink(missing_ok=True)  # it was meant for an attempt that is over
        started = state.started or run_state.now()
        write_state(
            paths, state.moved("running", attempt=lease.attempt, job_worker=job_worker, place=place, started=started)
        )
        return Begun(lease, wanted)


@dataclass
class _Watch:
    """Sees to one running attempt: its beat, its time, the wishes to stop it."""

    paths: RunPaths
    lease: Lease
    wanted: JobRequest
    running: RunningTrainer
    heartbeat_seconds: float
    held_seconds: float  # before this watch
    kill_at: float | None = None

    def until_it_ends(self) -> int:
        """Return the trainer's exit code.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        begun = beaten = time.monotonic()
        while (code := self.running.wait(POLL_SECONDS)) is None:
            now = time.monotonic()
            if now - beaten >= self.heartbeat_seconds:
                beaten = now
                self.lease.check()
                self._send_heartbeat()
            self._see_to_time(self.held_seconds + now - begun)
            self._see_to_stop(now)
        return code

    def _send_heartbeat(self) -> None:
        try:
            if not self.running.sends_own_heartbeat:
                self.lease.heartbeat()
        except OSError as error:  # a pause of the storage is no reason to end a run
            log.warning("%s: its beat cannot be written: %s", self.paths.run_id, error)

    def _see_to_time(self, seconds: float) -> None:
        limit, window = self.wanted.max_duration_seconds, self.wanted.window
        if limit and seconds > limit:
            StopRequest("overtime", self.lease.attempt).publish(self.paths.stop)
        elif window and not TimeWindow.parse(window).closes(datetime.now().astimezone()):
            StopRequest("window", self.lease.attempt).publish(self.paths.stop)

    def _see_to_stop(self, now: float) -> None:
        if not (request := StopRequest.read(self.paths.stop, self.lease.attempt)):
            return
        self.kill_at = self.kill_at or now + (STOP_SECONDS if request.seconds is None else request.seconds)
        if request.now or now >= self.kill_at:
            self.running.kill()
