"""Runs the trials of a search of heads on the CPUs of this machine, in processes that are forked from the trainer.

They share its memory, so the features are read once, and nothing has to be imported. Each computes with one thread.
On GPUs and on a cluster, Ray Tune runs the same trials (`head_trainable.py`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

import torch

from trainer.distributed.forked_process import ForkedProcess
from trainer.distributed.worker import WorkerTask
from trainer.evaluation import epoch_metrics, multi_label_metrics  # noqa: F401 -- once here, not in each process
from trainer.search.controller import SearchController
from trainer.search.frozen_trial import FrozenData, new_trial, read_data
from trainer.search.trial_files import PauseSignal
from trainer.search.trial_messages import RESTARTS, TrialAssignment, TrialEnd, TrialStep
from trainer.specs import SearchSpec
from trainer.training.optimizer import import_compiler

POLL_SECONDS = 0.2


def run_head_trials(
    controller: SearchController,
    task: WorkerTask[SearchSpec],
    *,
    count: int,
    on_poll: Callable[[], None],
) -> None:
    """Run trials until the controller starts no more and those that run have ended or paused.

    Args:
        controller: Decides which trials start, continue and end.
        task: Of the search. All features must be in the cache.
        count: Trials at once.
        on_poll: Called several times a second while trials run.
    """
    data = read_data(task, torch.device("cpu"))
    import_compiler()
    with _processes(task, data, min(count, controller.left())) as processes:
        while True:
            on_poll()
            for process in processes:
                if process.assignment is None and (assignment := controller.next_trial()) is not None:
                    process.start(assignment)
            busy = {process.process.connection: process for process in processes if process.assignment is not None}
            if not busy:
                return
            for connection in wait(list(busy), POLL_SECONDS):
                busy[connection].take(controller)  # type: ignore[index]  # these are connections


class HeadProcess:
    """A forked process that trains one trial after another.

    Attributes:
        assignment: The trial that it trains, None while it waits for one.
        process: Assignments are sent to it, and its steps back.
    """

    def __init__(self, task: WorkerTask[SearchSpec], data: FrozenData) -> None:
        self.task, self.data = task, data
        self.assignment: TrialAssignment | None = None
        self.deaths = 0
        self.process = ForkedProcess(_train_trials, task, data)

    def start(self, assignment: TrialAssignment) -> None:
        """Let it train a trial."""
        self.assignment, self.deaths = assignment, 0
        self.process.send(assignment)

    def take(self, controller: SearchController) -> None:
        """Take a step of the trial, or its death, to the controller, and let it continue or end."""
        assert self.assignment is not None  # noqa: S101
        try:
            step: TrialStep = self.process.connection.recv()
        except (EOFError, OSError):
            self._restart(self.assignment, controller)
            return
        continues = controller.record(self.assignment.trial, step)
        self.process.send(continues)
        if not continues:
            self.assignment = None

    def end(self) -> None:
        """Kill it; what its trial must keep is in a checkpoint."""
        self.process.end()

    def _restart(self, assignment: TrialAssignment, controller: SearchController) -> None:
        """Resume the trial in a new process; a trial whose process dies again and again has failed."""
        self.end()
        code, self.deaths = self.process.exit_code, self.deaths + 1
        self.process = ForkedProcess(_train_trials, self.task, self.data)
        if self.deaths <= RESTARTS:
            self.process.send(assignment)
            return
        cause = f"signal {-code} ended it" if code < 0 else f"it exited with {code}"
        controller.record(
            assignment.trial, TrialStep(end=TrialEnd.failed(f"its process died {self.deaths} times: {cause}"))
        )
        self.assignment = None


@contextmanager
def _processes(task: WorkerTask[SearchSpec], data: FrozenData, count: int) -> Iterator[list[HeadProcess]]:
    processes = list[HeadProcess]()
    try:
        for _ in range(count):
            processes.append(HeadProcess(task, data))
        yield processes
    finally:
        for process in processes:
            process.end()


def _train_trials(connection: Connection, task: WorkerTask[SearchSpec], data: FrozenData) -> None:
    """Train the trials that come through the connection."""
    pause = PauseSignal(task.attempt.paths, task.attempt.number)
    while True:
        trial = new_trial(task, connection.recv(), lambda: data, pause)
        continues = True
        while continues:
            connection.send(trial.step())
            continues = connection.recv()
