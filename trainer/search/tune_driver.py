"""The search's decisions as Ray Tune asks for them: what starts, what goes on, what ended.

Tune places trials and moves their numbers; everything that must outlive it stands in the ledger. Its own snapshots
are pickles in the scratch folder and are never read.
"""

# ruff: noqa: ARG002 -- the arguments are Tune's

import logging
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.process_env import set_pending_trials
from trainer.distributed.worker import WorkerTask
from trainer.errors import TrainerError
from trainer.search.controller import SearchController
from trainer.specs import SearchSpec

CAUSE_LENGTH = 200  # characters of what Ray says of a death
DEATHS = 2  # of a trial's process, within one attempt, before the trial counts as failed

HEAD_NODE = "node:__internal_head__"  # Ray's own resource of the head node, where there is always a place for a driver

# A head is small: a second thread makes a step of width 512 a fifth shorter on a quiet machine, and many times
# longer where the cores are busy, because threads that wait for each other spin. So one thread a head, many heads.
HEADS_PER_GPU = 4  # a GPU is far from full with one head

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How many trials run at once, and what each holds.

    Attributes:
        count: Trials at once.
        resources: Of one trial, by Ray's names.
        threads: That one trial's process computes with.
    """

    count: int
    resources: Mapping[str, float]
    threads: int


def run_trials(
    controller: SearchController,
    task: WorkerTask[SearchSpec],
    trainable: Any,
    slots: Slots,
    between: Callable[[], None],
) -> None:
    """Run trials until the director starts no more and those that run have ended or paused.

    Args:
        controller: Decides.
        task: What each trial's process is told.
        trainable: The class of a trial.
        slots: How many at once.
        between: Called again and again while trials run.
    """
    attempt, decisions = task.attempt, _Decisions(controller, between)
    suggestions = _Suggestions(decisions, slots.count)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it looks for files of the loggers that a ledger replaces
    at_once = min(slots.count, controller.left())
    set_pending_trials(at_once)
    given = tune.with_parameters(trainable, task=task, threads=slots.threads, slots=at_once)
    tune.Tuner(
        tune.with_resources(given, dict(slots.resources)),
        tune_config=tune.TuneConfig(
            num_samples=controller.spec.trials + 1,  # so that it asks once more, and is told that this was all
            search_alg=suggestions,
            scheduler=decisions,
            reuse_actors=True,  # a process that serves one trial after another reads the features once
        ),
        run_config=tune.RunConfig(
            name=f"tune-{attempt.number}",
            storage_path=str(attempt.paths.scratch),
            failure_config=tune.FailureConfig(max_failures=DEATHS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep checkpoints of their own
            verbose=0,
        ),
    ).fit()
    if decisions.trouble is not None:
        raise decisions.trouble
    if controller.running or not suggestions.is_done:  # Tune takes a Ctrl-C for itself and returns
        raise TrainerError("Ray Tune ended before the search did; `nightshift retry` goes on where it was")


class _Suggestions(Searcher):  # type: ignore[misc]  # Ray has no types
    """Hands the director's trials to Tune."""

    def __init__(self, decisions: "_Decisions", at_once: int) -> None:
        super().__init__()  # without a metric: the director ranks
        self.decisions, self.controller, self.at_once = decisions, decisions.controller, at_once
        self.is_done = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.controller.running) >= self.at_once:
            return None
        assignment = self.decisions.attempted(self.controller.next_trial)
        self.is_done = assignment is None
        return str(Searcher.FINISHED) if assignment is None else assignment

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hear that Tune gives a trial up; of the others the scheduler has heard."""
        if error:
            self.decisions.give_up()

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the ledger is the state."""


class _Decisions(FIFOScheduler):  # type: ignore[misc]
    """Asks the director after each epoch whether the trial goes on.

    A callback of Tune's would hear the same, but to count them Tune imports MLflow for a second.

    Attributes:
        look: Called before Tune looks for what to start, several times a second.
        died: The trial whose process died last; Tune runs it again, or gives it up at once.
        trouble: What went wrong in the search itself. Tune would turn it into text: so it is kept, all trials are let
            end, and it is raised afterwards.
    """

    def __init__(self, controller: SearchController, look: Callable[[], None]) -> None:
        super().__init__()
        self.controller, self.look = controller, look
        self.died: Any = None
        self.trouble: Exception | None = None

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        self.attempted(self.look)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.died = trial

    def give_up(self) -> None:
        """Record as failed the trial that died last."""
        file = self.died.error_file  # not `get_error()`, which reads a copy that Tune makes at its leisure
        lines = Path(file).read_text().strip().splitlines() if file else ["no word of why"]
        cause = textwrap.shorten(lines[-1], CAUSE_LENGTH, placeholder=" ...")  # Ray gives advice behind it
        result = {"failed": f"its process died {DEATHS + 1} times: {cause}"}
        self.attempted(lambda: self.controller.take(self.died.config["trial"], result))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return str(TrialScheduler.CONTINUE if self._goes_on(trial, result) else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if trial.config["trial"] in self.controller.running:
            self._goes_on(trial, result)

    def _goes_on(self, trial: Any, result: dict[str, Any]) -> bool:
        found = self.attempted(lambda: self.controller.take(trial.config["trial"], result))
        return bool(found) and self.trouble is None

    def attempted(self, act: Callable[[], T]) -> T | None:
        """Return what `act` returns; None once there is trouble."""
        try:
            return act() if self.trouble is None else None
        except Exception as error:
            self.trouble = error
            self.controller.close()
            return None


def head_slots(spec: SearchSpec, gpus: int) -> Slots:
    """Return how heads on stored features share what Ray has."""
    have = ray.cluster_resources()
    cpus = max(1, int(have.get("CPU", 1)))
    if gpus:
        there = int(have["GPU"])
        count = min(spec.concurrency or HEADS_PER_GPU * there, spec.trials)
        return Slots(count=count, resources={"GPU": gpu_share(count, there)}, threads=1)
    count = min(spec.concurrency or cpus, spec.trials)
    return Slots(count=count, resources={"CPU": min(1.0, int(1000 * cpus / count) / 1000)}, threads=1)


def gpu_share(count: int, gpus: int) -> float:
    """Return the share of a GPU with which `count` trials all find a place; Ray deals in whole GPUs or parts of one."""
    return 1.0 if count <= gpus else int(1000 / math.ceil(count / gpus)) / 1000


def run_slots(spec: SearchSpec, gpus: int, *, in_process: bool) -> Slots:
    """Return how trainings with workers of their own share what Ray has.

    As many run at once as find all their workers a place. A driver of workers holds nothing that a worker needs, so
    drivers that wait for workers never keep workers waiting.
    """
    have = ray.cluster_resources()
    resource = "GPU" if gpus else "CPU"
    room = max(1, int(have.get(resource, 1)) // spec.workers)
    if not in_process:
        return Slots(count=min(spec.concurrency or room, room, spec.trials), resources={HEAD_NODE: 0.001}, threads=1)
    count = min(spec.concurrency or (room if gpus else 1), room, spec.trials)
    return Slots(count=count, resources={resource: int(have.get(resource, 1)) // count}, threads=1)
