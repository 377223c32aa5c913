"""What the job worker takes from inside RQ: a release that moves it fails here, before a worker loses a run."""

import inspect

import pytest
import rq
from rq.job import JobStatus

from jobs.queue.entries import RunEntry, new_entry
from jobs.queue.job_worker import JobWorker
from jobs.queue.queues import RunQueue, queue

OVERRIDDEN = {
    JobWorker: (
        rq.Worker,
        {
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
