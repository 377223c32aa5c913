"""Runs the trials of a search of heads on this machine, in processes of the trainer: one for each CPU or GPU.

They are forked, so that nothing has to be imported; on CPUs they share the features. Each process trains its trials
together where that is faster (`head_group.py`): on a GPU always. With folds each trial has a process, four of them on a
GPU. On a cluster, Ray Tune runs the same trials (`head_trainable.py`).
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import Connection, wait

import torch

from cluster.process_env import cuda_visible_devices, show_gpus
from cluster.resources import cpu_count
from trainer.distributed.child_process import LOG_FORMAT, ChildProcess, StartMethod, forks_can_use_gpus
from trainer.distributed.worker import WorkerTask
from trainer.evaluation import epoch_metrics, multi_label_metrics  # noqa: F401 -- once here, not in each process
from trainer.search.controller import SearchController
from trainer.search.frozen_trials import FrozenData, FrozenTrials, read_data, widest_head
from trainer.search.trial_messages import RESTARTS, TrialAssignment, TrialEnd, TrialStep
from trainer.specs import SearchSpec
from trainer.training.optimizer import import_compiler

POLL_SECONDS = 0.2
TRIALS_PER_GPU = 16  # more cost little time
FOLDS_PER_GPU = 4  # trials with folds, in processes of their own: between two trainings each judges on the CPU
# Four heads of 64 units train 1.6 times as fast together as one after the other, of 128 1.3 times, wider ones hardly.
TRIALS_PER_CPU, NARROW = 4, 128
AT_ONCE = 0.25  # of all trials, unless --concurrency says it: TPE has to learn from some before it suggests others


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the trials of a search run.

    Attributes:
        trials: At once, in all processes.
        processes: How many there are.
        gpus: Which the processes share evenly; 0: they are on CPUs.
    """

    trials: int
    processes: int
    gpus: int = 0

    @classmethod
    def of(cls, spec: SearchSpec, *, gpus: int, left: int) -> "Places":
        """Return how `left` trials share the CPUs of this machine, or its GPUs if the search has any."""
        most = int(AT_ONCE * spec.trials)
        if spec.folds is not None:  # a trial trains the heads of its folds together
            trials = min(spec.concurrency or FOLDS_PER_GPU * gpus or cpu_count(), left)
            return cls(trials=trials, processes=trials, gpus=gpus)
        if gpus:
            trials = min(spec.concurrency or max(gpus, min(TRIALS_PER_GPU * gpus, most)), left)
            return cls(trials=trials, processes=min(gpus, trials), gpus=gpus)
        together = TRIALS_PER_CPU if widest_head(spec) <= NARROW else 1
        trials = min(spec.concurrency or max(cpu_count(), min(together * cpu_count(), most)), left)
        return cls(trials=trials, processes=min(cpu_count(), trials))

    @property
    def in_process(self) -> int:
        """Trials at once in one process."""
        return -(-self.trials // self.processes)


def run_head_trials(
    controller: SearchController,
    task: WorkerTask[SearchSpec],
    places: Places,
    *,
    extract: Callable[[], object],
    on_poll: Callable[[], None],
) -> None:
    """Run trials until the controller starts no more and those that run have ended or paused.

    Args:
        controller: Decides which trials start, continue and end.
        task: Of the search.
        places: Where the trials run.
        extract: Computes the features that the cache lacks. Processes on GPUs start meanwhile.
        on_poll: Called several times a second while trials run.
    """
    with _processes(task, places, extract) as processes:
        while True:
            on_poll()
            _start_trials(controller, processes, places)
            busy = {process.process.connection: process for process in processes if process.training}
            if not busy:
                return
            for connection in wait(list(busy), POLL_SECONDS):
                busy[connection].take(controller)  # type: ignore[index]  # these are connections


def _start_trials(controller: SearchController, processes: Sequence["HeadProcess"], places: Places) -> None:
    """Give new trials to the processes that have the fewest, as many as the places allow; let all train."""
    while len(controller.running) < places.trials:
        process = min(processes, key=lambda one: len(one.trials))
        if len(process.trials) >= places.in_process or (assignment := controller.next_trial()) is None:
            break
        process.add(assignment)
        if len(process.trials) == places.in_process:
            process.start()  # before the controller is asked for the next trial, which takes time
    for process in processes:
        process.start()


class HeadProcess:
    """A process that trains several trials at once.

    Attributes:
        trials: Those that it was given and that have not ended, by number.
        deaths: Of its processes, by the number of each trial that they trained.
        training: Numbers of the trials that it trains; none while it waits for some.
        process: The trials to train are sent to it, and their steps back.
    """

    def __init__(self, begin: Callable[[], ChildProcess]) -> None:
        self.begin = begin
        self.trials: dict[int, TrialAssignment] = {}
        self.deaths: dict[int, int] = {}
        self.training: set[int] = set()
        self.process = begin()

    def add(self, assignment: TrialAssignment) -> None:
        """Let it train a trial; while it trains others, after they have reported."""
        self.trials[assignment.trial] = assignment
        self.deaths[assignment.trial] = 0

    def start(self) -> None:
        """Let it train its trials unless it does already.

        A trial whose process has died so often that it fails if that happens once more trains alone.
        """
        if self.training or not self.trials:
            return
        suspects = [number for number in self.trials if self.deaths[number] == RESTARTS]
        self.training = set(suspects[:1] or self.trials)
        self.process.send([self.trials[number] for number in sorted(self.training)])

    def take(self, controller: SearchController) -> None:
        """Take the steps of its trials, or its death, to the controller, and let those train on that continue."""
        try:
            steps: dict[int, TrialStep] = self.process.connection.recv()
        except (EOFError, OSError):
            self._restart(controller)
        else:
            for number, step in sorted(steps.items(), key=lambda item: item[1].is_lost):  # first what the others report
                if not controller.record(number, step):
                    del self.trials[number]
        self.training = set()
        self.start()  # before the controller is asked for new trials, which takes time

    def end(self) -> None:
        """Kill it; what its trials must keep is in checkpoints."""
        self.process.end()

    def _restart(self, controller: SearchController) -> None:
        """Resume the trials in a new process; a trial whose process dies again and again has failed.

        It was the cause of the deaths of the others, which then train together again.
        """
        self.end()
        code = self.process.exit_code
        cause = f"signal {-code} ended it" if code < 0 else f"it exited with {code}"
        self.process = self.begin()
        for number in sorted(self.training):
            self.deaths[number] += 1
            if self.deaths[number] > RESTARTS:
                error = f"its process died {self.deaths[number]} times: {cause}"
                controller.record(number, TrialStep(end=TrialEnd.failed(error)))
                del self.trials[number]
                self.deaths |= dict.fromkeys(self.trials, 0)


@contextmanager
def _processes(
    task: WorkerTask[SearchSpec], places: Places, extract: Callable[[], object]
) -> Iterator[list[HeadProcess]]:
    processes = list[HeadProcess]()
    try:
        if places.gpus:
            for number in range(places.processes):
                processes.append(HeadProcess(partial(_on_gpu, task, number % places.gpus)))
            extract()
        else:
            extract()
            data = read_data(task, torch.device("cpu"))
            import_compiler()
            for _ in range(places.processes):
                processes.append(HeadProcess(partial(ChildProcess, _train_trials, task, data)))
        yield processes
    finally:
        for process in processes:
            process.end()


def _on_gpu(task: WorkerTask[SearchSpec], gpu: int) -> ChildProcess:
    """Start a process on one of the GPUs: a fork, unless the trainer has used a GPU already, as it has for features."""
    method: StartMethod = "fork" if forks_can_use_gpus() else "spawn"
    uuid = (cuda_visible_devices() or "").split(",")[gpu]
    return ChildProcess(_train_trials_on_gpu, task, uuid, method=method)


def _train_trials(connection: Connection, task: WorkerTask[SearchSpec], data: FrozenData) -> None:
    """Train the trials that come through the connection, in a process that has the features."""
    trials = FrozenTrials(task, lambda: data)
    while True:
        trials.train_only(connection.recv())
        connection.send(trials.step())


def _train_trials_on_gpu(connection: Connection, task: WorkerTask[SearchSpec], uuid: str) -> None:
    """Train the trials that come through the connection on a GPU, in a process that sees no other.

    Of several MIG instances CUDA shows a process only the first.
    """
    show_gpus([uuid])
    _train_trials_on(connection, task, "cuda:0")


def _train_trials_on(connection: Connection, task: WorkerTask[SearchSpec], device: str) -> None:
    """Train the trials that come through the connection, in a process that reads the features to its own device."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)  # a spawned process has no logging
    found = torch.device(device)
    read = cache(lambda: read_data(task, found))
    trials = FrozenTrials(task, read, on_gpu=found.type == "cuda")
    while True:
        trials.train_only(connection.recv())
        connection.send(trials.step())
