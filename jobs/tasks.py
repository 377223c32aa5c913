"""Run one run, from its claim to its end: what the job worker's horse does. Needs the run's folder, never Redis."""

import logging
import time
from dataclasses import dataclass
from datetime import datetime

from cluster.errors import LaunchError, LeaseLost
from cluster.files import read_json
from cluster.launch import Launcher, LocalLauncher, Running
from cluster.lease import BEAT_SECONDS, Lease, latest_attempt
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.windows import Window
from jobs import ledger
from jobs.endings import end, lost, outcome
from jobs.ledger import changing, write_state
from jobs.request import JobRequest
from jobs.stop_wish import ask_to_stop, stop_wish
from jobs.waits import blocked_by

log = logging.getLogger("nightshift.tasks")

POLL_SECONDS = 0.5
STOP_SECONDS = 120.0  # from the wish to stop until a trainer that saves no checkpoint is ended


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
        end(paths, lease, lost(paths, lease.attempt, str(error)))
        return
    try:
        code = _Watch(paths, lease, wanted, running).until_it_ends()
    except LeaseLost as error:
        log.warning("%s", error)
        running.kill()
        return
    end(paths, lease, outcome(paths, lease.attempt, code))


def _begin(paths: RunPaths, job_worker: str) -> tuple[Lease, JobRequest] | None:
    with changing(paths) as state:
        if state.state != "queued":
            return None
        wanted = JobRequest.model_validate(read_json(paths.job))
        if verdict := blocked_by(paths.folder.parent.parent, wanted):  # its window closed while it stood in the queue
            write_state(paths, state.moved("scheduled" if state.attempt == 0 else "paused", verdict.why))
            return None
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
