"""The job worker: an RQ worker that loses no run, runs only our entries and leaves no process behind.

It forks a work-horse for each run. The work-horse needs no Redis; the parent updates Redis before and after it.
When the parent dies, the kernel kills the work-horse, and the trainer's guard ends the trainer and its children.
Trainers of this machine are forks of the job worker's fork server, which has imported torch and Ray.
"""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import redis
import rq
from redis.client import Pipeline
from rq import worker_registration
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.serializers import JSONSerializer
from rq.timeouts import HorseMonitorTimeoutException

from cluster import guard
from cluster.errors import ClusterError
from cluster.launch import THIS_MACHINE, Launcher, LocalLauncher
from cluster.ray_jobs import RayJobLauncher, RayJobs
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from cluster.stop_request import StopRequest
from cluster.version import VERSION
from cluster.warm_launch import ForkServer, WarmLauncher
from jobs.errors import QueueUnreachable
from jobs.queue import embedded_redis, mlflow_sender, tasks
from jobs.queue.connection import WORKER, connect
from jobs.queue.entries import RunEntry
from jobs.queue.gpu_history import gpu_sampler
from jobs.queue.leader_lock import LeaderLock
from jobs.queue.mlflow_sender import MlflowSender
from jobs.queue.queues import PREFIX, RunQueue, enqueue, is_paused
from jobs.queue.reconciler import reconciler_thread
from jobs.queue.stop_reminder import StopReminder
from jobs.queue.storage_check import ready_storage
from jobs.queue.webhook_sender import deliver
from jobs.queue.worker_list import VERSION_FIELD
from jobs.runs import state as run_state
from jobs.runs.outcomes import mark_dead, release_watch
from jobs.runs.request import PRIORITIES

log = logging.getLogger("nightshift.worker")

WORKER_TTL_SECONDS = 60
MONITORING_SECONDS = 10
MAINTENANCE_SECONDS = 30
WEBHOOK_SECONDS = 2.0
PAUSED_SECONDS = 1.0  # between two checks whether the queues are still paused
HORSE_FAILED = 1  # exit code of a work-horse that could not run its run
DRAIN_SECONDS = 120.0  # from SIGTERM until a trainer that saves no checkpoint is ended


class JobWorker(rq.Worker):
    """One job worker that serves a set of queues."""

    def __init__(
        self,
        settings: Settings,
        priorities: Sequence[str],
        launcher: Launcher,
        drain_seconds: float,
        fork_server: ForkServer | None = None,
    ) -> None:
        """Connect to Redis; `work` starts working."""
        self.settings, self.launcher, self.drain_seconds = settings, launcher, drain_seconds
        self.fork_server = fork_server
        self.drained = self.is_leaving = False
        super().__init__(
            [PREFIX + priority for priority in priorities],
            name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
            connection=connect(settings, WORKER),
            worker_ttl=WORKER_TTL_SECONDS,
            job_monitoring_interval=MONITORING_SECONDS,
            maintenance_interval=MAINTENANCE_SECONDS,
            job_class=RunEntry,
            queue_class=RunQueue,
            serializer=JSONSerializer,
            log_job_description=False,
        )

    def bootstrap(self, *args: Any) -> None:
        """Register in Redis, with RQ's signal handlers already set: RQ itself sets them only afterwards.

        Without them, SIGTERM would end a worker that lost Redis at this moment instead of draining it.
        """
        self._install_signal_handlers()  # type: ignore[no-untyped-call]
        try:
            super().bootstrap(*args)
            self.connection.hset(self.key, VERSION_FIELD, VERSION)
        except StopRequested:
            self.register_death()  # type: ignore[no-untyped-call]
            raise

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Send a heartbeat to Redis, and register again if Redis does not know this worker any more.

        It was emptied, or this machine was suspended for longer than a worker without heartbeats is kept: RQ's own
        heartbeat would then make a worker that serves no queue.
        """
        super().heartbeat(timeout, pipeline)
        if self.birth_date is not None and not self.connection.hexists(self.key, VERSION_FIELD):
            log.warning("Redis had forgotten this job worker, which registers again")
            fields = {**self.serialize(), "state": self.get_state(), VERSION_FIELD: VERSION}
            with self.connection.pipeline() as registration:
                registration.hset(self.key, mapping=fields)
                worker_registration.register(self, registration)
                registration.execute()

    def execute_job(self, job: RunEntry, queue: RunQueue) -> None:  # type: ignore[override]
        """Run one run in a work-horse of its own and finalize its state afterwards."""
        execution = self.prepare_execution(job)
        self.prepare_job_execution(job, remove_from_intermediate_queue=True)
        if self.fork_server is not None:
            self.fork_server.refresh()
            self.fork_server.count_run()
        self.fork_work_horse(job, queue)
        exit_code = self._wait_for_work_horse(job, execution)
        self._finalize_run(job.id)
        self._clear_entry(job, execution, requeue=exit_code != HORSE_FAILED)
        self.set_state(rq.worker.WorkerStatus.IDLE)
        if self.fork_server is not None and not self.drained:
            self.fork_server.refresh()

    def main_work_horse(self, job: RunEntry, _queue: RunQueue) -> None:  # type: ignore[override]
        """Run the run in the work-horse, then exit without returning."""
        guard.die_with_parent(self._parent, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches us too; the worker decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            tasks.run(self.settings, self.launcher, job.id, job_worker=self.name)
        except (ClusterError, OSError) as error:
            log.error("%s: %s", job.id, error)
            os._exit(HORSE_FAILED)
        except BaseException:
            log.exception("%s: the work-horse failed unexpectedly", job.id)
            os._exit(HORSE_FAILED)
        os._exit(0)

    def fork_work_horse(self, job: RunEntry, queue: RunQueue) -> None:  # type: ignore[override]
        """Fork the work-horse, which checks that this process is still its parent."""
        self._parent = os.getpid()
        super().fork_work_horse(job, queue)

    def _wait_for_work_horse(self, job: RunEntry, execution: Execution) -> int | None:
        """Send heartbeats until the work-horse ends and return its exit code, None if a signal ended it."""
        status = None
        while True:
            try:
                with self.death_penalty_class(self.job_monitoring_interval, HorseMonitorTimeoutException):
                    _, status, _ = self.wait_for_horse()
                break
            except HorseMonitorTimeoutException:
                if self.drained:
                    self._hand_back(job.id)  # again: the first request may have come before the attempt was claimed
                try:
                    self.maintain_heartbeats(job, execution)
                except redis.RedisError as error:
                    log.warning("Redis does not answer (%s); %s continues without it", type(error).__name__, job.id)
        self._horse_pid = 0  # RQ's own field, which RQ's `monitor_work_horse` resets in the same way
        self.executions.pop(execution.id, None)
        return os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None

    def _finalize_run(self, run_id: str) -> None:
        """Mark the attempt dead if its work-horse died, and end the processes that the work-horse left."""
        stay = embedded_redis.started_here() | mlflow_sender.started_here()
        stay |= set(self.fork_server.pids if self.fork_server else ())
        guard.end_descendants(os.getpid(), grace_seconds=0, spare=stay)
        try:
            paths = RunPaths.of(self.settings.storage, run_id)
            state = run_state.read_state(paths)
            if state.state == "running" and state.job_worker == self.name:
                if state.place == THIS_MACHINE:
                    mark_dead(paths, state.attempt, "its job process died")
                else:
                    release_watch(paths, self.name)
        except (ClusterError, OSError) as error:
            # The reconciler finalizes it when the storage is back.
            log.warning("%s is finalized later: %s", run_id, error)

    def _clear_entry(self, job: RunEntry, execution: Execution, *, requeue: bool) -> None:
        """Delete the entry from Redis and queue the run again if needed; the reconciler repairs what fails here.

        A run that could not be started is left to the reconciler: queued at once, it would fail in a tight loop.
        """
        try:
            with self.connection.pipeline() as pipe:
                execution.delete(job=job, pipeline=pipe)
                pipe.delete(job.key)
                pipe.execute()
            with contextlib.suppress(ClusterError, OSError):
                state = run_state.read_state(RunPaths.of(self.settings.storage, job.id))
                if requeue and state.needs_queueing:
                    enqueue(self.connection, job.id, state.priority, at_front=True)
        except redis.RedisError as error:
            log.warning("Redis does not answer (%s); %s is repaired when it is back", type(error).__name__, job.id)

    def check_for_suspension(self, _burst: bool) -> None:
        """Wait while the queues are paused, with `--burst` too: for each worker that exits, KEDA would start another.

        The worker's key in Redis is renewed meanwhile, so that the reconciler releases none of its runs.
        """
        before = self.get_state()
        while not self.drained and is_paused(self.connection):
            self.set_state(rq.worker.WorkerStatus.SUSPENDED)
            self.heartbeat()
            threading.Event().wait(PAUSED_SECONDS)
        self.set_state(before)

    def handle_warm_shutdown_request(self) -> None:
        """On SIGTERM: ask the running attempt to save a checkpoint and come back to the front of the queue."""
        self.drained = True
        execution = next(iter(self.executions.values()), None)
        if execution is None:
            log.info("stopping; no run is running")
            return
        log.info("draining: %s goes back to the queue", execution.job_id)
        self._hand_back(execution.job_id)

    def _hand_back(self, run_id: str) -> None:
        with contextlib.suppress(ClusterError, OSError):
            paths = RunPaths.of(self.settings.storage, run_id)
            state = run_state.read_state(paths)
            if state.place != THIS_MACHINE:
                self.kill_horse()  # it only watches: the run continues, and the next job worker watches it
            elif state.state == "running" and state.job_worker == self.name:
                StopRequest("drain", state.attempt, seconds=self.drain_seconds).publish(paths.stop)

    def misses_stop(self) -> bool:
        """Whether the worker was told to stop while it was idle, and still waits for runs."""
        return self.drained and not self.is_leaving and self.get_state() != rq.worker.WorkerStatus.BUSY

    def teardown(self) -> None:
        """Sign off at the end of the work."""
        self.is_leaving = True
        super().teardown()  # type: ignore[no-untyped-call]

    def request_force_stop(self, signum: int, _frame: FrameType | None) -> None:
        """Continue to drain on a second SIGTERM: a checkpoint is worth the wait; SIGKILL ends the worker at once.

        Raises:
            StopRequested: The worker has missed the first one.
        """
        if self.misses_stop():
            raise StopRequested
        log.info("signal %d: already draining, for %.0f seconds at most", signum, self.drain_seconds)

    def set_shutdown_requested_date(self) -> None:
        """Do not write to Redis: it may be unreachable, and this runs in a signal handler."""

    def run_maintenance_tasks(self) -> None:
        """Clean RQ's registries; a malformed value that somebody else wrote there must not end the worker."""
        try:
            super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        except (StopRequested, redis.ConnectionError, redis.TimeoutError):
            raise
        except Exception:
            self.last_cleaned_at = rq.utils.now()  # type: ignore[assignment]
            log.exception("RQ's registries could not be cleaned; the queues are served all the same")


def work(
    settings: Settings,
    *,
    priorities: Sequence[str] = PRIORITIES,
    burst: bool = False,
    max_jobs: int | None = None,
    launcher: Launcher | None = None,
    drain_seconds: float = DRAIN_SECONDS,
    cold: bool = False,
) -> None:
    """Work until SIGTERM or SIGINT, or until the queues are empty with `burst`; reconnect when Redis comes back.

    Args:
        settings: Of this machine.
        priorities: The queues to take runs from.
        burst: Whether to end when they are empty.
        max_jobs: How many runs to run at most.
        launcher: Starts trainers; by default that of the settings.
        drain_seconds: From SIGTERM until a trainer that saves no checkpoint is ended.
        cold: Whether each trainer of this machine imports torch and Ray anew, instead of being forked. The only trainer
            of a job worker does so in any case.
    """
    guard.adopt_orphans()
    launcher = launcher or launcher_for(settings, cold=cold or max_jobs == 1)
    fork_server = launcher.fork_server if isinstance(launcher, WarmLauncher) else None
    make = partial(JobWorker, settings, priorities, launcher, drain_seconds, fork_server)
    first = make()  # a wrong address fails at once
    ready_storage(settings, first.connection)
    worker: JobWorker | None = first
    with (
        contextlib.suppress(StopRequested),  # SIGTERM between two connection attempts
        contextlib.nullcontext() if fork_server is None else fork_server,
    ):
        while worker is not None:
            with (
                reconciler_thread(settings, worker.name),
                _webhook_sender(settings, worker.name),
                MlflowSender(settings, sends_last=burst or max_jobs is not None),
                gpu_sampler(settings, worker.name),
                StopReminder(worker.misses_stop),
                contextlib.suppress(redis.RedisError),
            ):
                worker.work(burst=burst, max_jobs=max_jobs, logging_level="WARNING")
            if burst or max_jobs is not None:
                return
            worker = _reconnected(worker, make)


def _webhook_sender(settings: Settings, holder: str) -> LeaderLock:
    return LeaderLock(settings, "webhook-sender", holder, lambda _: deliver(settings), WEBHOOK_SECONDS)


def _reconnected(worker: JobWorker, make: Callable[[], JobWorker]) -> JobWorker | None:
    """Return a new job worker for one that lost Redis, as soon as Redis is back; None if it was told to stop."""
    wait_seconds, fresh = 1.0, None
    while fresh is None and not worker.drained:
        log.warning("the job worker lost its connection to Redis; it tries again in %.0f seconds", wait_seconds)
        threading.Event().wait(wait_seconds)
        wait_seconds = min(30.0, wait_seconds * 2)
        with contextlib.suppress(QueueUnreachable):
            fresh = make()
    return None if worker.drained else fresh


def launcher_for(settings: Settings, *, cold: bool = True) -> Launcher:
    """Return the launcher of trainers: on the Ray cluster that the settings name, otherwise on this machine."""
    if settings.ray_jobs_url is None:
        return LocalLauncher() if cold else WarmLauncher(ForkServer(settings.storage))
    # The trainer marks its run and does not connect; and Ray shows a job's environment to all who may list its jobs.
    environment = (("MLFLOW_TRACKING_URI", "sent-by-job-workers"),) if settings.mlflow_uri else ()
    jobs = RayJobs(settings.ray_jobs_url, settings.ray_token)
    return RayJobLauncher(jobs, settings.lease_seconds, environment=environment)
