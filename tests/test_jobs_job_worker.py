"""What the job worker takes from inside RQ: a release that moves it fails here, before a worker loses a run."""

import inspect
import os
import signal

import pytest
import rq
from rq.job import JobStatus

from jobs.queue.entries import RunEntry, new_entry
from jobs.queue.job_worker import JobWorker, work
from jobs.queue.queues import RunQueue, queue
from jobs.queue.worker_list import live_workers

OVERRIDDEN = {
    JobWorker: (
        rq.Worker,
        {
            "bootstrap": ["self", "logging_level", "date_format", "log_format"],
            "heartbeat": ["self", "timeout", "pipeline"],
            "execute_job": ["self", "job", "queue"],
            "main_work_horse": ["self", "job", "queue"],
            "fork_work_horse": ["self", "job", "queue"],
            "check_for_suspension": ["self", "burst"],
            "handle_warm_shutdown_request": ["self"],
            "request_force_stop": ["self", "signum", "frame"],
            "set_shutdown_requested_date": ["self"],
            "run_maintenance_tasks": ["self"],
        },
    ),
    RunEntry: (rq.job.Job, {"restore": ["self", "raw_data"], "perform": ["self"]}),
}


@pytest.mark.parametrize(
    ("ours", "theirs", "name", "parameters"),
    [(ours, theirs, *item) for ours, (theirs, members) in OVERRIDDEN.items() for item in members.items()],
)
def test_rq_has_each_method_that_is_overridden(ours: type, theirs: type, name: str, parameters: list[str]) -> None:
    assert name in vars(ours)
    assert list(inspect.signature(getattr(theirs, name)).parameters) == parameters


def test_rq_passes_what_dequeue_any_takes() -> None:
    theirs = inspect.signature(rq.Queue.dequeue_any).parameters

    assert list(theirs)[:2] == ["queues", "timeout"]
    assert "connection" in theirs
    assert "dequeue_any" in vars(RunQueue)


def test_rq_keeps_the_pid_of_its_work_horse_in_the_field_that_the_job_worker_resets() -> None:
    assert "self._horse_pid = child_pid" in inspect.getsource(rq.Worker.fork_work_horse)
    assert "self._horse_pid = 0" in inspect.getsource(rq.Worker.monitor_work_horse)
    assert "self._horse_pid" in inspect.getsource(rq.worker.BaseWorker.horse_pid.fget)


def test_an_entry_carries_the_status_and_queue_that_rq_expects(redis) -> None:
    target = queue(redis, "high")

    fields = new_entry(redis, "train-20261123-203000-a1b2c3", target.name).to_dict()

    assert (fields["status"], fields["origin"]) == (JobStatus.QUEUED, "nightshift-high")


def test_a_stop_while_the_worker_registers_in_redis_is_a_clean_end(settings, redis, monkeypatch):
    seen = []

    def stop_while_it_registers(worker):
        seen.extend(live_workers(redis))
        assert signal.getsignal(signal.SIGTERM) == worker.request_stop  # the default would end the tests here
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(JobWorker, "subscribe", stop_while_it_registers)
    monkeypatch.setattr("cluster.guard.adopt_orphans", lambda: None)  # the tests' own process stays as it is
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        work(settings)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

    assert len(seen) == 1
    assert live_workers(redis) == []
