"""`search`: runs the trials, publishes the best model and evaluates it on the test split."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.errors import StorageError
from cluster.files import read_json_object
from cluster.run_paths import RunPaths
from cluster.stop_request import StopRequest
from cluster.windows import local_now
from data_shards.counted import counted
from data_shards.index import ShardIndex
from data_shards.pack.group_counts import group_counts
from trainer.attempt import Attempt
from trainer.data.run_data import run_index
from trainer.distributed.local_gpus import lease_local_gpus
from trainer.distributed.ray_train import ray_session, run_on_workers
from trainer.distributed.worker import WorkerTask
from trainer.errors import SpecError, Stopped, TrainerError
from trainer.evaluate import test_metrics
from trainer.evaluation.out_of_fold import KEY
from trainer.evaluation.seen_images import count_evaluation
from trainer.model.bundle import weights_sha256
from trainer.model.checkpoint_folder import read_verified_manifest
from trainer.model.weights import resolve_weights
from trainer.progress import WRITE_SECONDS, Progress
from trainer.report.write import write_report
from trainer.result import RunResult
from trainer.search.choice import Choice
from trainer.search.choice_text import choice_lines
from trainer.search.controller import SearchController
from trainer.search.deadline import Clock, Deadline
from trainer.search.head_processes import Places, run_head_trials
from trainer.search.head_trainable import HeadTrainable
from trainer.search.head_training import standalone_context
from trainer.search.importance import importance
from trainer.search.journal import TrialJournal, copy_trials
from trainer.search.publisher import BestModelPublisher
from trainer.search.refit import Refit, refuse_impossible_refit
from trainer.search.report import cost, search_section
from trainer.search.run_repeats import RepeatedRunTrainable
from trainer.search.run_trainable import RunTrainable
from trainer.search.trial_files import PauseSignal
from trainer.search.trials import TrialTable
from trainer.search.tune_driver import head_slots, run_slots, run_trials, useful_gpus
from trainer.specs import SearchSpec
from trainer.train import check_data
from trainer.training.cross_validation import beside_baselines, cross_validated_split
from trainer.training.features import features_of_search_on_worker, features_on_worker, run_on_features
from trainer.training.model_setup import TrainingSetup
from trainer.training.publish import feature_precision

POLL_SECONDS = 1.0
STOPS = ("stop", "window", "failures")  # endings after which the search is not complete

logger = logging.getLogger(__name__)


def search(attempt: Attempt, spec: SearchSpec, *, clock: Clock = local_now) -> RunResult:
    """Run the trials that are left, publish the best model and return its metrics on the test split.

    Raises:
        SpecError: The data does not allow the spec.
        Stopped: The run was asked to stop, or its time window closed; running trials have saved checkpoints.
        TrainerError: Too many trials failed, or none finished an epoch.
    """
    index = run_index(attempt.lease, spec.shards)
    for config in spec.space.corners():
        check_data(spec.trial_spec(config), index)
    refuse_impossible_refit(spec, index)
    refuse_other_images(spec, index, attempt.settings.storage)
    task = WorkerTask(attempt=attempt, spec=spec, source=resolve_weights(spec.weights, attempt.settings.storage))
    journal = TrialJournal.opened(attempt.lease, spec.best_by, clock())
    if spec.extend:
        copy_trials(journal, RunPaths.of(attempt.settings.storage, spec.extend), clock())
    pause = PauseSignal(attempt.paths, attempt.number)
    deadline = Deadline.of(spec, began=journal.began, now=clock())
    controller = SearchController(spec, journal, deadline, clock, pause.run_stop_reason)
    publisher = BestModelPublisher(task, journal)
    _run(controller, task, index, pause, publisher)
    with attempt.times.measure("evaluation"):
        # A search that stops leaves the best model so far; it chooses at its end.
        choice = None if controller.ending() in STOPS else publisher.choose()
        publisher.update(at_once=True, chosen=None if choice is None else choice.chosen)
    _stop_if_asked(controller, attempt)
    if choice is None:
        what = "an epoch" if spec.folds is None else "its folds"
        raise TrainerError(f"no trial finished {what}; {_last_error(journal.table)}")
    refit = Refit(task, controller, index, choice.chosen).run() if spec.refit else None
    return _outcome(controller, task, index, choice, refit)


def _run(
    controller: SearchController,
    task: WorkerTask[SearchSpec],
    index: ShardIndex,
    pause: PauseSignal,
    publisher: BestModelPublisher,
) -> None:
    """Run the trials that are left until the search must stop."""
    if not controller.has_work():
        return
    spec, settings = task.spec, task.attempt.settings
    if settings.ray_address is None and not _leases_gpus(controller, task):
        return
    progress = SearchProgress(task.attempt, controller, images_per_epoch(spec, index))

    def on_poll() -> None:
        if controller.must_pause():
            pause.send()
        publisher.update()
        progress.write_if_due()

    features = WorkerTask(
        attempt=task.attempt, spec=spec.trial_spec({}), source=task.source, longest_shard=index.longest_shard
    )
    extract = features_of_search_on_worker if spec.folds is None else features_on_worker  # no test split with folds
    if spec.reads_features and settings.ray_address is None:
        gpus = lease_local_gpus(task.attempt, spec)[0].gpus
        places = Places.of(spec, gpus=gpus, left=controller.left())
        progress.gpus_per_trial = min(gpus, places.processes) / places.trials
        compute = partial(run_on_features, extract, extract, features)
        with task.attempt.times.measure("training"):
            run_head_trials(controller, task, places, extract=compute, on_poll=on_poll)
        return
    with ExitStack() as session:
        try:
            gpus = session.enter_context(ray_session(task.attempt, spec, stop_reason=_stop_reason_of(controller)))
        except Stopped as reason:  # while it waited for room on the cluster
            logger.info("%s", reason)
            return
        if spec.reads_features:
            run_on_workers(extract, features)
            trainable, slots = HeadTrainable, head_slots(spec, settings, gpus)
        else:
            in_process = spec.workers == 1 and settings.ray_address is None
            trainable = RunTrainable if spec.repeats == 1 else RepeatedRunTrainable
            slots = run_slots(spec, settings, gpus, in_process=in_process)
        progress.gpus_per_trial = slots.gpus
        with task.attempt.times.measure("training"):
            run_trials(controller, task, trainable, slots, on_poll)


def _leases_gpus(controller: SearchController, task: WorkerTask[SearchSpec]) -> bool:
    """Lease the GPUs that the trials can use; return False if the search has to stop before there are any."""
    stop_reason = _stop_reason_of(controller)
    try:
        lease_local_gpus(task.attempt, task.spec, most=useful_gpus(task.spec), stop_reason=stop_reason)
    except Stopped as reason:
        logger.info("%s", reason)
        return False
    return True


def _stop_reason_of(controller: SearchController) -> Callable[[], str | None]:
    """Return a function that says why the search has to stop waiting, or None."""

    def stop_reason() -> str | None:
        return controller.stop_reason() or ("the search has reached its deadline" if controller.must_pause() else None)

    return stop_reason


def _stop_if_asked(controller: SearchController, attempt: Attempt) -> None:
    """Raise if the search failed, or has to stop before its end."""
    table = controller.journal.table
    ending = controller.ending()
    if ending == "failures":
        raise TrainerError(
            f"{counted(table.failed, 'trial')} failed, more than --max-failures {controller.spec.max_failures}; "
            f"{_last_error(table)}"
        )
    if ending == "window":
        Progress(attempt.paths, attempt.lease).start_phase("waiting", total=0)  # nothing hangs while it waits
        while not controller.must_pause():  # no further trial fits in; wait for the window to close
            time.sleep(POLL_SECONDS)
        StopRequest("window", attempt.number).publish(attempt.paths.stop)
    if ending in ("stop", "window"):
        raise Stopped(f"stopped after {table.finished} of {controller.spec.trials} trials; the next attempt continues")


def _outcome(
    controller: SearchController,
    task: WorkerTask[SearchSpec],
    index: ShardIndex,
    choice: Choice,
    refit: dict[str, Any] | None,
) -> RunResult:
    """Judge the published model on the test split, or on valid where there is none; that of folds is judged already."""
    attempt, spec, table = task.attempt, task.spec, controller.journal.table
    best = choice.chosen
    split = "valid" if spec.folds is None else cross_validated_split(index)
    chosen = choice.to_json(spec, index, split, group_counts(spec.shards, index, split).get(split))
    for _, line in choice_lines({"choice": chosen}):
        logger.info("%s", line)
    weights = weights_sha256(attempt.paths.best)
    judged: dict[str, Any]
    if spec.folds is None:
        metrics = test_metrics(task, index, attempt.paths.best)
        count = count_evaluation(attempt.paths.storage, index, metrics["split"], attempt.paths.run_id)
        judged = {"evaluations_of_split": count}
    else:  # the test split stays untouched
        manifest = read_verified_manifest(attempt.paths.best)
        trial = spec.trial_spec(table.trials[best.trial].config)
        setup = TrainingSetup.fresh(standalone_context(task, trial, torch.device("cpu"), writes_progress=True))
        with attempt.times.measure("evaluation"):
            judged = {KEY: manifest[KEY], **beside_baselines(setup, attempt.paths.best, manifest["metrics"])}
        metrics = judged.pop("metrics")
    counts = {"asked": spec.trials, "finished": table.finished, "failed": table.failed, "paused": len(table.unfinished)}
    result = RunResult(
        kind=spec.kind,
        checkpoint=str(attempt.paths.best),
        metrics=metrics,
        seconds=round(attempt.seconds, 3),
        model_sha256=weights,
        details={
            "best": {"trial": best.trial, "epoch": best.epoch, "metric": spec.best_by, "value": best.value}
            | {"config": table.trials[best.trial].config},
            "choice": chosen,
            **feature_precision(task),
            **judged,
            "refit": refit,
            "trials": counts,
            "ending": controller.ending(),
            "importance": importance(table, spec),
            "cost": cost(table, spec, _images_through_backbone(spec, index)),
        },
    )
    shares = result.details["importance"]
    write_report(attempt, spec, result, lambda: search_section(table, spec, shares, chosen))
    return result


def refuse_other_images(spec: SearchSpec, index: ShardIndex, storage: Path) -> None:
    """Refuse to extend a search with folds on a data set that has other images now: the folds would be others.

    Raises:
        SpecError: It has.
    """
    if spec.extend is None or spec.folds is None:
        return
    before = read_json_object(RunPaths.of(storage, spec.extend).data)["digest"]
    if before != index.digest:
        raise SpecError(
            f"--extend {spec.extend}: {spec.shards} has other images now, and other folds; start a new search"
        )


def images_per_epoch(spec: SearchSpec, index: ShardIndex) -> int:
    """Return how many images one epoch of a trial trains on; with folds, of all its trainings together."""
    if spec.folds is None:
        return index.samples_in("train")
    return index.samples_in(cross_validated_split(index)) * (spec.folds - 1) * spec.fold_repeats


def _images_through_backbone(spec: SearchSpec, index: ShardIndex) -> int:
    """Return how many images one epoch of one training would send through the backbone without cached features."""
    if spec.folds is None:
        return index.samples_in("train") + index.samples_in("valid")
    return images_per_epoch(spec, index) // spec.trainings_per_trial


def _last_error(table: TrialTable) -> str:
    failed = [trial for trial in table.ended if trial.state == "failed"]
    return f"the last, trial {failed[-1].number}: {failed[-1].error}" if failed else "give the search more time"


@dataclass
class SearchProgress:
    """Writes `progress.json` about once a second. Its `epoch` counts the trials that ended.

    Its phase is "starting" until a trial of this attempt has made progress: the trials may wait for machines that the
    cluster starts.

    Attributes:
        gpus_per_trial: GPUs of a running trial, those of its workers included.
    """

    attempt: Attempt
    controller: SearchController
    images_per_epoch: int
    gpus_per_trial: float = 0.0
    _written: float = float("-inf")
    _has_begun: bool = False

    def __post_init__(self) -> None:
        self._began, self._before = time.monotonic(), self.controller.journal.table.epochs

    def write_if_due(self) -> None:
        """Write the file unless it was written within the last second."""
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._written = time.monotonic()
            with suppress(OSError):  # as `Progress.write`
                self.attempt.lease.write_json(self.attempt.paths.progress, self._content())

    def _content(self) -> dict[str, object]:
        table, spec = self.controller.journal.table, self.controller.spec
        done = table.epochs
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = (done - self._before) / seconds
        best, ended = table.best(), len(table.ended)
        self._has_begun = self._has_begun or done > self._before or self._has_begun_training()
        left = (spec.trials - ended) * (done / ended) if ended else None  # epochs, at the mean of the ended trials
        return {
            "phase": "train" if self._has_begun else "starting",
            "epoch": ended,
            "epochs": spec.trials,
            "done": done * self.images_per_epoch,
            "total": spec.trials * spec.epochs * self.images_per_epoch,
            "images_per_second": round(speed * self.images_per_epoch, 1),
            "eta_seconds": None if left is None or not speed else round(left / speed, 1),
            "attempt": self.attempt.number,
            "gpus": round(len(self.controller.running) * self.gpus_per_trial, 3) if self._has_begun else 0,
            "trials": {"running": len(self.controller.running), "finished": table.finished, "failed": table.failed},
            "best": None if best is None else {"trial": best.trial, "epoch": best.epoch, "value": best.value},
        }

    def _has_begun_training(self) -> bool:
        """Whether a worker of a trial of this attempt runs: it has written the progress of its training."""
        return any(_attempt_of(file) == self.attempt.number for file in self.attempt.paths.progress_of_trials())


def _attempt_of(progress: Path) -> Any:
    try:
        return read_json_object(progress).get("attempt")
    except StorageError:
        return None
