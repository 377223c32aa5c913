"""Publishes the best model of a search while it runs, and deletes the files of worse trials."""

import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.errors import StorageError
from cluster.files import read_json_object
from cluster.resources import this_machine
from cluster.run_paths import RunPaths
from data_shards.read.stream import read_shards
from trainer.attempt import Attempt
from trainer.data.run_data import run_index
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import CheckpointError, Stopped
from trainer.evaluation.bootstrap import Labels
from trainer.evaluation.intervals import group_ids
from trainer.evaluation.metric_text import figure_text
from trainer.evaluation.trial_outputs import TrialOutputs, read_trial_outputs
from trainer.model.checkpoint_folder import read_tensors, read_verified_manifest
from trainer.model.efficientnet import Classifier
from trainer.model.names import CALIBRATION_FILE, MANIFEST_FILE, MODEL_FILE
from trainer.progress import Progress
from trainer.search.choice import Choice, choose
from trainer.search.head_training import no_stop, standalone_context
from trainer.search.journal import TrialJournal
from trainer.search.refit import chosen_model
from trainer.search.trial_files import trial_folder
from trainer.search.trials import EpochRecord, TrialTable, read_trial_events
from trainer.specs import SearchSpec, TrainSpec
from trainer.training.checkpointer import MODULE
from trainer.training.cross_validation import publish_judged
from trainer.training.model_setup import TrainingSetup
from trainer.training.publish import score_and_publish
from trainer.training.run_precision import is_precision_decided

PUBLISH_SECONDS = 30.0  # at least, between two publications; each scores the model on the whole valid split
BY_WORKERS = "scored_by_workers"  # in the manifest
SMALL, BATCH = 32, 256  # side and number of the images that are decoded where only their groups are needed
PAUSE_FACTOR = 10  # pause this many times as long as a publication took

logger = logging.getLogger(__name__)


@dataclass
class BestModelPublisher:
    """Keeps `best/` up to date with the trial journal."""

    task: WorkerTask[SearchSpec]
    journal: TrialJournal
    next_at: float = field(default_factory=lambda: time.monotonic() + PUBLISH_SECONDS)

    def __post_init__(self) -> None:
        for draft in self.attempt.paths.folder.glob(f".{self.attempt.paths.best.name}.*"):
            self.attempt.lease.remove(draft)  # left by a killed process of version 0.1.0
        self.published = self._published()

    @property
    def attempt(self) -> Attempt:
        """The attempt it publishes for."""
        return self.task.attempt

    def update(self, *, at_once: bool = False, chosen: EpochRecord | None = None) -> None:
        """Publish the best epoch of the journal unless it is published; when due, or `at_once`.

        `chosen` is the epoch that the search has chosen at its end, which need not be the best.

        `at_once` is for the end of the trials: nothing else writes progress then, so the scoring of the model does.
        Before that nothing is published until the workers have decided on the precision: a search that extends
        another has a best model before its first worker runs, and the CPU of this process must not decide for them.

        Raises:
            LeaseLost: A newer attempt owns the run.
            CheckpointError: The storage is full.
        """
        best = chosen or self.journal.table.best()
        if best is None:
            return
        on_workers = at_once and self._is_for_gpu_workers(best)
        if self.published.covers(best, on_workers=on_workers):
            if at_once:
                self._delete_worse()
        elif at_once or (time.monotonic() >= self.next_at and self._is_precision_decided(best)):
            began = time.monotonic()
            self._publish(best, writes_progress=at_once, on_workers=on_workers)
            ended = time.monotonic()
            self.published = _Published(trial=best.trial, epoch=best.epoch, by_workers=on_workers)
            self.next_at = ended + max(PUBLISH_SECONDS, PAUSE_FACTOR * (ended - began))
            self._delete_worse()

    def choose(self) -> Choice | None:
        """Return which trial to publish, at the end of the trials; None if no trial has a value.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        table, spec, paths = self.journal.table, self.task.spec, self.attempt.paths
        progress = Progress(paths, self.attempt.lease)
        progress.start_phase("choose", total=0)

        def outputs_of(record: EpochRecord) -> TrialOutputs | None:
            return read_trial_outputs(paths.checkpoints, record.trial, record.epoch)

        choice, best = choose(table, spec, outputs_of, self._groups_of_valid, progress.add_step), table.best()
        if choice is None or best is None or choice.chosen == best or self._has_weights(choice.chosen):
            return choice
        return choice.without_default_model(best)

    def _has_weights(self, record: EpochRecord) -> bool:
        """Whether the model of an epoch was kept; a search that this one extends may have kept its best alone."""
        try:
            self._weights(record)
        except CheckpointError:
            return False
        return True

    def _groups_of_valid(self) -> Labels:
        """Return the index of each image's group of the valid split, (N,); from the shards."""
        spec = self.task.spec
        index = run_index(self.attempt.lease, spec.shards)
        count, names = index.samples_in("valid"), list[str]()
        if index.grouped:
            shards = index.of_split("valid")
            for _, batch in read_shards(spec.shards, shards, index, image_size=SMALL, batch_size=BATCH):
                names += batch.groups
        return group_ids(names, count)

    def _is_for_gpu_workers(self, best: EpochRecord) -> bool:
        """Whether workers on GPUs score the best model at the end, when GPUs that trained the backbone are free.

        They score a model on the features of a frozen backbone too if no worker has run: then they decide on its
        precision, for the refit.
        """
        spec = self.task.spec
        if spec.gpus_per_worker == 0 or (spec.reads_features and self._is_precision_decided(best)):
            return False
        return self.attempt.settings.ray_address is not None or this_machine().gpus > 0

    def _is_precision_decided(self, best: EpochRecord) -> bool:
        config = self.journal.table.trials[best.trial].config
        return is_precision_decided(self.attempt.paths, self.task.spec.trial_spec(config))

    def _published(self) -> "_Published":
        try:
            folder = self.attempt.paths.best
            manifest = read_json_object(folder / MANIFEST_FILE)
            if not (folder / CALIBRATION_FILE).exists():  # killed between writing the two
                return _Published()
            by_workers = manifest.get(BY_WORKERS) is True
            return _Published(trial=int(manifest["trial"]), epoch=int(manifest["epoch"]), by_workers=by_workers)
        except (StorageError, KeyError, TypeError, ValueError, OverflowError):
            return _Published()

    def _publish(self, best: EpochRecord, *, writes_progress: bool, on_workers: bool) -> None:
        """Score and publish a model: on this process's CPU while trials run on GPUs, at the end as the trials ran."""
        trial = self.journal.table.trials[best.trial]
        spec = self.task.spec.trial_spec(trial.config)
        origin: dict[str, Any] = {"trial": best.trial, "epoch": best.epoch, "value": best.value, "config": trial.config}
        file = self._weights(best)
        if on_workers:
            longest = run_index(self.attempt.lease, spec.shards).longest_shard
            task = WorkerTask(attempt=self.attempt, spec=spec, source=self.task.source, longest_shard=longest)
            try:
                run_on_workers(partial(publish_on_worker, file=file, origin=origin | {BY_WORKERS: True}), task)
            except Stopped as reason:  # while it waited for room on the cluster
                logger.info("%s; the best model is scored on this machine", reason)
                on_workers = False
        if not on_workers:
            context = standalone_context(self.task, spec, torch.device("cpu"), writes_progress=writes_progress)
            publish_on_worker(context, file=file, origin=origin)
        ranked = f"{'valid' if spec.folds is None else 'out-of-fold'} {self.task.spec.best_by}"
        value = figure_text(best.value, 5, of=ranked)
        logger.info("best so far: trial %d, epoch %d, %s %s", best.trial, best.epoch, ranked, value)

    def _weights(self, best: EpochRecord) -> Path:
        """Return the verified file of the weights of an epoch."""
        if earlier := best.extended_from:
            return self._weights_in(RunPaths.of(self.attempt.settings.storage, earlier), best)
        folder = self.attempt.paths.checkpoints / str(best.report.candidate)
        read_verified_manifest(folder)
        return folder / MODULE

    def _weights_in(self, earlier: RunPaths, best: EpochRecord) -> Path:
        """Return the file of the weights in an earlier search: its published model, or one that it kept beside it."""
        folder = chosen_model(earlier)
        manifest = read_verified_manifest(folder)
        if (manifest.get("trial"), manifest.get("epoch")) == (best.trial, best.epoch):
            return folder / MODEL_FILE
        trial = TrialTable.fold(read_trial_events(earlier.trials).lines, self.task.spec.best_by).trials.get(best.trial)
        record = None if trial is None else trial.reports.get(best.epoch)
        if record is not None and record.extended_from:
            return self._weights_in(RunPaths.of(earlier.storage, record.extended_from), best)
        candidate = None if record is None else record.report.candidate
        if candidate is None or not (earlier.checkpoints / candidate).is_dir():
            raise CheckpointError(
                f"{earlier.run_id} has not kept the model of its trial {best.trial}; wait until it has ended"
            )
        read_verified_manifest(earlier.checkpoints / candidate)
        return earlier.checkpoints / candidate / MODULE

    def _delete_worse(self) -> None:
        """Delete the files of all ended trials but the best, and the default one if the search may choose it."""
        table, checkpoints = self.journal.table, self.attempt.paths.checkpoints
        keeps_default = self.task.spec.choose == "default"
        default = [one for one in table.trials.values() if keeps_default and self.task.spec.is_default(one.config)]
        records = [table.best(), *(trial.best(table.metric) for trial in default)]
        keep = {record.report.candidate for record in records if record and record.report.candidate}
        candidates = {record.report.candidate for record in table.reports()}
        worse = {name for name in candidates - keep if name and "/" not in name}
        folders = {trial_folder(checkpoints, trial.number).name for trial in table.ended}
        worse |= folders - {name.split("/")[0] for name in keep}
        for name in sorted(worse & _names_in(checkpoints)):  # of the worse ones of a long search, nearly all are gone
            self.attempt.lease.remove(checkpoints / name)


@dataclass(frozen=True, kw_only=True)
class _Published:
    """The published epoch; that of no trial if nothing is published.

    Attributes:
        by_workers: Whether workers on GPUs have scored it.
    """

    trial: int = -1
    epoch: int = -1
    by_workers: bool = False

    def covers(self, best: EpochRecord, *, on_workers: bool) -> bool:
        """Whether the best epoch is published, and scored by workers if it should be."""
        return (self.trial, self.epoch) == (best.trial, best.epoch) and (self.by_workers or not on_workers)


def publish_on_worker(context: WorkerContext[TrainSpec], *, file: Path, origin: dict[str, Any]) -> None:
    """Score the model with the weights in a file on the validation split, and publish it; every rank must call this.

    It is done too if the search was asked to stop: the best model so far is what a stopped search leaves. A model of
    folds is published with the predictions out of fold beside the file.
    """
    setup = TrainingSetup.fresh(replace(context, stop=no_stop(context.task.attempt)))
    if context.spec.folds is not None:
        _load(setup.model, read_tensors(file))
        publish_judged(setup, file.parent, origin=origin)
        return
    context.progress.start_phase("evaluate", total=setup.index.samples_in("valid"))
    _load(setup.model, read_tensors(file))
    score_and_publish(setup, origin=origin)
    context.process_group.barrier()


def _names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def _load(model: Classifier, tensors: dict[str, Tensor]) -> None:
    """Load a candidate's tensors into the model: those of its head, or of the whole."""
    module = model if any(name.startswith("backbone.") for name in tensors) else model.head
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"a saved model does not fit its trial: {str(error).splitlines()[-1].strip()}; run the search again"
        ) from error
