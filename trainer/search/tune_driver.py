"""Runs the trials of a search with Ray Tune, which asks the search controller what starts, continues and ends.

Tune places trials and passes their messages on; everything that must survive it is in the trial journal. Tune's own
snapshots are pickles in the scratch folder, and nothing reads them.
"""

# ruff: noqa: ARG002 -- the arguments are Tune's

import logging
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.process_env import set_pending_trials
from cluster.settings import Settings
from trainer.distributed.ray_train import Resource, cluster_capacity
from trainer.distributed.worker import WorkerTask
from trainer.errors import TrainerError
from trainer.search.controller import SearchController
from trainer.search.head_processes import FOLDS_PER_GPU, TRIALS_PER_GPU
from trainer.search.trial_messages import RESTARTS, TrialAssignment, TrialEnd, TrialStep
from trainer.specs import SearchSpec

CAUSE_LENGTH = 200  # characters of Ray's message about a process that died

HEAD_NODE = "node:__internal_head__"  # Ray's own resource of the head node, where drivers always find room

# A head is small: a second thread makes a step of width 512 a fifth shorter on an idle machine, but many times longer
# on a busy one, because threads spin while they wait for each other. So each head has one thread, and many run at once.
HEADS_PER_GPU = 4  # in processes of their own: one head uses a small part of a GPU

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How many trials run at once, and the resources of each.

    Attributes:
        count: Trials at once.
        resources: Of one trial, by Ray's names.
        threads: CPU threads of one trial's process.
        gpus: GPUs of one trial, those of its workers included.
    """

    count: int
    resources: Mapping[str, float]
    threads: int
    gpus: float = 0.0


def run_trials(
    controller: SearchController,
    task: WorkerTask[SearchSpec],
    trainable: Any,
    slots: Slots,
    on_poll: Callable[[], None],
) -> None:
    """Run trials until the controller starts no more and those that run have ended or paused.

    Args:
        controller: Decides which trials start, continue and end.
        task: The task of each trial's process.
        trainable: The class of a trial.
        slots: How many run at once.
        on_poll: Called several times a second while trials run.

    Raises:
        TrainerError: Ray Tune ended early. Any error of `controller` or `on_poll` is raised after the trials ended.
    """
    attempt, scheduler = task.attempt, _Scheduler(controller, on_poll)
    searcher = _Searcher(scheduler, slots.count)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns about files of loggers not used here
    at_once = min(slots.count, controller.left())
    set_pending_trials(at_once)
    given = tune.with_parameters(trainable, task=task, threads=slots.threads, slots=at_once)
    tune.Tuner(
        tune.with_resources(given, dict(slots.resources)),
        tune_config=tune.TuneConfig(
            num_samples=controller.spec.trials + 1,  # so that Tune asks once more and hears that there are no more
            search_alg=searcher,
            scheduler=scheduler,
            reuse_actors=True,  # a process that runs one trial after another reads the features once
        ),
        run_config=tune.RunConfig(
            name=f"tune-{attempt.number}",
            storage_path=str(attempt.paths.scratch),
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials save their own checkpoints
            verbose=0,
        ),
    ).fit()
    if scheduler.error is not None:
        raise scheduler.error
    if controller.running or not searcher.is_done:  # Tune catches Ctrl-C itself and returns
        raise TrainerError("Ray Tune ended before the search was done; `nightshift retry` continues from the journal")


class _Searcher(Searcher):  # type: ignore[misc]  # Ray has no types
    """Gives the controller's next trials to Tune."""

    def __init__(self, scheduler: "_Scheduler", at_once: int) -> None:
        super().__init__()  # without a metric: the controller ranks
        self.scheduler, self.controller, self.at_once = scheduler, scheduler.controller, at_once
        self.is_done = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.controller.running) >= self.at_once:
            return None
        assignment = self.scheduler.guarded(self.controller.next_trial)
        self.is_done = assignment is None
        return str(Searcher.FINISHED) if assignment is None else assignment.to_tune()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record a trial that Tune gives up; the scheduler records all others."""
        if error:
            self.scheduler.record_death()

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save nothing: the trial journal is the state."""


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
    """Asks the controller after each message of a trial whether the trial continues.

    A Tune callback gets the same events, but Tune imports MLflow, which takes a second, as soon as there is one.

    Attributes:
        on_poll: Called before Tune chooses a trial to run, several times a second.
        died: The trial whose process died last; Tune restarts it, or gives it up at once.
        error: An error of the search itself. Tune would turn it into text: so it is kept, all trials end, and
            `run_trials` raises it afterwards.
    """

    def __init__(self, controller: SearchController, on_poll: Callable[[], None]) -> None:
        super().__init__()
        self.controller, self.on_poll = controller, on_poll
        self.died: Any = None
        self.error: Exception | None = None

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        self.guarded(self.on_poll)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.died = trial

    def record_death(self) -> None:
        """Record that the trial whose process died last has failed."""
        file = self.died.error_file  # not `get_error()`, which reads a copy that Tune makes later
        lines = Path(file).read_text().strip().splitlines() if file else ["no cause known"]
        cause = textwrap.shorten(lines[-1], CAUSE_LENGTH, placeholder=" ...")  # Ray adds advice after it
        step = TrialStep(end=TrialEnd.failed(f"its process died {RESTARTS + 1} times: {cause}"))
        self.guarded(lambda: self.controller.record(_number(self.died), step))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return str(TrialScheduler.CONTINUE if self._continues(trial, result) else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if _number(trial) in self.controller.running:
            self._continues(trial, result)

    def _continues(self, trial: Any, result: dict[str, Any]) -> bool:
        found = self.guarded(lambda: self.controller.record(_number(trial), TrialStep.from_tune(result)))
        return bool(found) and self.error is None

    def guarded(self, act: Callable[[], T]) -> T | None:
        """Return what `act` returns; None once an error has occurred."""
        try:
            return act() if self.error is None else None
        except Exception as error:
            self.error = error
            self.controller.close()
            return None


def _number(trial: Any) -> int:
    """Return the number of a trial of Tune's."""
    return TrialAssignment.from_tune(trial.config).trial


def useful_gpus(spec: SearchSpec) -> int:
    """Return how many GPUs all trials that run at once can use."""
    at_once = min(spec.concurrency or spec.trials, spec.trials)
    if not spec.reads_features:
        return at_once * spec.workers
    return math.ceil(at_once / (TRIALS_PER_GPU if spec.folds is None else FOLDS_PER_GPU))


def head_slots(spec: SearchSpec, settings: Settings, gpus: int) -> Slots:
    """Return how trials that train heads on stored features share Ray's resources."""
    if gpus:
        there = max(1, cluster_capacity(settings, "GPU"))  # a cluster may have no GPU node at the moment
        count = min(spec.concurrency or HEADS_PER_GPU * there, spec.trials)
        share = gpu_share(count, there)
        return Slots(count=count, resources={"GPU": share}, threads=1, gpus=share)
    cpus = max(1, cluster_capacity(settings, "CPU"))
    count = min(spec.concurrency or cpus, spec.trials)
    return Slots(count=count, resources={"CPU": min(1.0, int(1000 * cpus / count) / 1000)}, threads=1)


def gpu_share(count: int, gpus: int) -> float:
    """Return the share of a GPU with which `count` trials all fit; Ray assigns whole GPUs or a part of one."""
    return 1.0 if count <= gpus else int(1000 / math.ceil(count / gpus)) / 1000


def run_slots(spec: SearchSpec, settings: Settings, gpus: int, *, in_process: bool) -> Slots:
    """Return how trainings with workers of their own share Ray's resources.

    As many run at once as there is room for all their workers. A driver holds no resource that a worker needs, so
    drivers that wait for workers never block workers.
    """
    resource: Resource = "GPU" if gpus else "CPU"
    have = cluster_capacity(settings, resource)
    room = max(1, have // spec.workers)
    if in_process:
        count = min(spec.concurrency or (room if gpus else 1), room, spec.trials)
        each = max(1, have) // count
        return Slots(count=count, resources={resource: each}, threads=1, gpus=each if gpus else 0.0)
    # A cluster of unknown size may add nodes for as many trials as were asked for; they wait for it without harm.
    may_grow = settings.ray_address is not None and not (gpus and settings.cluster_gpus is not None)
    count = min(spec.concurrency or room, spec.trials) if may_grow else min(spec.concurrency or room, room, spec.trials)
    return Slots(count=count, resources={HEAD_NODE: 0.001}, threads=1, gpus=float(spec.workers * gpus))
