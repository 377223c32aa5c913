"""Publishes the best model of a search while it runs, and deletes the files of worse trials."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.errors import StorageError
from cluster.files import read_json
from cluster.run_paths import RunPaths
from trainer.attempt import Attempt
from trainer.distributed.worker import WorkerTask
from trainer.errors import CheckpointError
from trainer.model.checkpoint_folder import read_tensors, read_verified_manifest
from trainer.model.efficientnet import Classifier
from trainer.model.names import CALIBRATION_FILE, MANIFEST_FILE, MODEL_FILE
from trainer.search.head_training import standalone_context
from trainer.search.journal import TrialJournal
from trainer.search.refit import chosen_model
from trainer.search.trial_files import trial_folder
from trainer.search.trials import EpochRecord
from trainer.specs import SearchSpec
from trainer.training.checkpointer import MODULE
from trainer.training.model_setup import TrainingSetup
from trainer.training.publish import score_and_publish

PUBLISH_SECONDS = 30.0  # at least, between two publications; each scores the model on the whole valid split
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

    def update(self, *, at_once: bool = False) -> None:
        """Publish the best epoch of the journal unless it is published; when due, or `at_once`.

        `at_once` is for the end of the trials: nothing else writes progress then, so the scoring of the model does.

        Raises:
            LeaseLost: A newer attempt owns the run.
            CheckpointError: The storage is full.
        """
        best = self.journal.table.best()
        if best is None:
            return
        if (best.trial, best.epoch) == self.published:
            if at_once:
                self._delete_worse(best)
        elif at_once or time.monotonic() >= self.next_at:
            began = time.monotonic()
            self._publish(best, writes_progress=at_once)
            ended = time.monotonic()
            self.published = (best.trial, best.epoch)
            self.next_at = ended + max(PUBLISH_SECONDS, PAUSE_FACTOR * (ended - began))
            self._delete_worse(best)

    def _published(self) -> tuple[int, int] | None:
        try:
            folder = self.attempt.paths.best
            manifest = read_json(folder / MANIFEST_FILE)
            if not (folder / CALIBRATION_FILE).exists():  # killed between writing the two
                return None
            return int(manifest["trial"]), int(manifest["epoch"])
        except (StorageError, KeyError, TypeError):
            return None

    def _publish(self, best: EpochRecord, *, writes_progress: bool) -> None:
        trial = self.journal.table.trials[best.trial]
        spec = self.task.spec.trial_spec(trial.config)
        context = standalone_context(self.task, spec, torch.device("cpu"), writes_progress=writes_progress)
        setup = TrainingSetup.fresh(context)
        context.progress.start_phase("evaluate", total=setup.index.samples_in("valid"))
        _load(setup.model, self._tensors(best))
        origin: dict[str, Any] = {"trial": best.trial, "epoch": best.epoch, "value": best.value, "config": trial.config}
        score_and_publish(setup, origin=origin)
        logger.info("best so far: trial %d, epoch %d, valid %s %.5f", best.trial, best.epoch, spec.best_by, best.value)

    def _tensors(self, best: EpochRecord) -> dict[str, Tensor]:
        if earlier := best.extended_from:
            folder = chosen_model(RunPaths.of(self.attempt.settings.storage, earlier))
            manifest = read_verified_manifest(folder)
            if (manifest.get("trial"), manifest.get("epoch")) != (best.trial, best.epoch):
                raise CheckpointError(f"{earlier} has not published its trial {best.trial}; wait until it has ended")
            return read_tensors(folder / MODEL_FILE)
        folder = self.attempt.paths.checkpoints / str(best.report.candidate)
        read_verified_manifest(folder)
        return read_tensors(folder / MODULE)

    def _delete_worse(self, best: EpochRecord) -> None:
        """Delete the files of all ended trials but the best."""
        checkpoints, keep = self.attempt.paths.checkpoints, str(best.report.candidate)
        candidates = {record.report.candidate for record in self.journal.table.reports()}
        worse = {name for name in candidates if name and name != keep and "/" not in name}
        folders = {trial_folder(checkpoints, trial.number).name for trial in self.journal.table.ended}
        worse |= {name for name in folders if not keep.startswith(f"{name}/")}
        for name in sorted(worse & _names_in(checkpoints)):  # of the worse ones of a long search, nearly all are gone
            self.attempt.lease.remove(checkpoints / name)


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
