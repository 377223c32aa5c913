"""The refit: trains the best configuration once more, on the train and valid splits together.

No split is left to choose an epoch by, so the refit stops at the epoch at which the best trial was best. Its
temperature is that of the best trial's model, which is kept in `chosen/`: a temperature fitted on images that the
refit was trained on would be wrong.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.files import read_json, read_json_object_if_any
from cluster.periodic import periodic_calls
from cluster.run_paths import RunPaths, TrialPaths
from cluster.stop_request import StopRequest
from data_shards.index import BOTH, ShardIndex
from trainer.attempt import Attempt
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import OutOfMemory, SpecError, Stopped, TrainingDiverged
from trainer.evaluate import test_metrics
from trainer.evaluation.calibration import Calibration
from trainer.evaluation.out_of_fold import KEY as CROSS_VALIDATION
from trainer.model.bundle import publish_model, read_model, weights_sha256
from trainer.model.names import CALIBRATION_FILE, MANIFEST_FILE
from trainer.model.weights import backbone_sha256
from trainer.search.controller import SearchController
from trainer.search.deadline import seconds_of_trial
from trainer.search.run_trainable import EpochStepSpec
from trainer.search.trials import EpochRecord
from trainer.specs import SearchSpec, TrainSpec, build
from trainer.train import check_data
from trainer.training.features import features_on_worker, run_on_features, setup_of_training
from trainer.training.worker import train_model

POLL_SECONDS = 0.5
COMPARED = ("split", "n", "accuracy", "auroc", "loss", "sensitivity", "specificity")
CALIBRATED_BY = "the best trial's model, in `chosen/`, on the valid split; the refit was trained on that split"

logger = logging.getLogger(__name__)


SPLIT = f"train{BOTH}valid"


class RefitSpec(EpochStepSpec):
    """A training on the train and valid splits together, up to the epoch at which the trial was best."""

    @property
    def split(self) -> str:
        """Both splits."""
        return SPLIT


@dataclass
class Refit:
    """Runs after the last trial of a search with --refit; `best` is the epoch that the search has chosen."""

    task: WorkerTask[SearchSpec]
    controller: SearchController
    index: ShardIndex
    best: EpochRecord

    @property
    def attempt(self) -> Attempt:
        """The attempt it publishes for."""
        return self.task.attempt

    def run(self) -> dict[str, Any]:
        """Publish the refit as the search's best, and return its facts; safe to run again after a kill.

        Raises:
            Stopped: The run was asked to stop, or its window closed; a checkpoint is saved.
        """
        best = self.best
        if (done := published_refit(self.attempt.paths)) is not None:
            return self._with_chosen(done)
        if why := self._no_time_left():
            return {"left_out": why}
        self._keep_chosen()
        try:
            return self._with_chosen(self._publish(best, self._train(best)))
        except (TrainingDiverged, OutOfMemory) as error:
            logger.error("the refit failed: %s", error)
            return {"left_out": " ".join(str(error).split())}
        except Stopped:
            if self._resumes_later():
                raise
            return {"left_out": "the search reached its deadline before the refit ended"}

    def _with_chosen(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the refit's facts with the metrics, on the same split, of the model that it replaces."""
        folder = self.attempt.paths.chosen
        found = test_metrics(self.task, self.index, folder)
        return {**facts, "chosen": {"checkpoint": str(folder), **{name: found[name] for name in COMPARED}}}

    def _keep_chosen(self) -> None:
        paths = self.attempt.paths
        _publish_as(
            self.attempt, paths.best, paths.chosen, about=_manifest(paths.best), calibration=_calibration(paths.best)
        )

    def _no_time_left(self) -> str | None:
        controller = self.controller
        if controller.deadline.why == "window":  # it pauses when the window closes, and resumes in the next
            return None
        seconds = seconds_of_trial(controller.journal.table, controller.spec.epochs)
        has_room = controller.deadline.has_room_for(seconds, controller.clock())
        return None if has_room else "the search reached its deadline"

    def _resumes_later(self) -> bool:
        if self.controller.stop_reason() is not None:
            return True
        if self.controller.deadline.why == "window":
            StopRequest("window", self.attempt.number).publish(self.attempt.paths.stop)
            return True
        return False

    def _train(self, best: EpochRecord) -> int:
        paths = TrialPaths(self.attempt.paths.checkpoints / "refit")
        paths.folder.mkdir(parents=True, exist_ok=True)
        StopRequest.remove(paths.stop)
        config = self.controller.journal.table.trials[best.trial].config
        spec = _refit_spec(self.task.spec.trial_spec(config), best.epoch)
        logger.info("refit of trial %d on %s for %d epochs", best.trial, SPLIT, best.epoch)
        task = WorkerTask(
            attempt=self.attempt,
            spec=spec,
            source=self.task.source,
            longest_shard=self.index.longest_shard,
            trial=paths,
        )
        self._poll(paths)
        with periodic_calls(lambda: self._poll(paths), every_seconds=POLL_SECONDS, name="the refit's poll thread"):
            if spec.reads_features:
                return run_on_features(refit_on_worker, features_on_worker, task)
            return run_on_workers(refit_on_worker, task)

    def _poll(self, paths: TrialPaths) -> None:
        """Stop the training when the search must pause, and copy its progress to the run's."""
        if self.controller.must_pause():
            StopRequest("window", self.attempt.number).publish(paths.stop)
        if paths.progress.exists():
            self.attempt.lease.write_json(self.attempt.paths.progress, read_json(paths.progress))

    def _publish(self, best: EpochRecord, images: int) -> dict[str, Any]:
        paths = self.attempt.paths
        facts = {"splits": ["train", "valid"], "epochs": best.epoch, "images": images, "calibrated_by": CALIBRATED_BY}
        about = _manifest(paths.chosen)
        about |= {"refit": facts, "chosen": {"metrics": about.pop("metrics")}}
        calibration = _calibration(paths.chosen)
        _publish_as(
            self.attempt, paths.checkpoints / "refit" / "best", paths.best, about=about, calibration=calibration
        )
        self.attempt.lease.remove(paths.checkpoints / "refit")
        return facts


def refuse_impossible_refit(spec: SearchSpec, index: ShardIndex) -> None:
    """Refuse a refit that the data does not allow.

    Raises:
        SpecError: There is no test split to evaluate it on, or a step leaves a worker too few images.
    """
    if not spec.refit:
        return
    if "test" not in index.splits:
        raise SpecError(f"{spec.shards} has no split 'test' to evaluate a refit on; pack one, or leave out --refit")
    for config in spec.space.corners():
        check_data(_refit_spec(spec.trial_spec(config), epochs=1), index)


def published_refit(paths: RunPaths) -> dict[str, Any] | None:
    """Return the facts of the refit in the published model's manifest; None if that model is not a refit.

    Raises:
        StorageAway: The manifest cannot be read now.
    """
    manifest = read_json_object_if_any(paths.best / MANIFEST_FILE)
    found = None if CROSS_VALIDATION in manifest else manifest.get("refit")  # no refit of a model in `chosen/`
    return dict(found) if found and (paths.best / CALIBRATION_FILE).exists() else None


def chosen_model(paths: RunPaths) -> Path:
    """Return the folder of the best trial's own model, also where a refit is the published one."""
    return paths.best if published_refit(paths) is None else paths.chosen


def _refit_spec(trial: TrainSpec, epochs: int) -> RefitSpec:
    return build(RefitSpec, **{**trial.model_dump(exclude={"kind"}), "patience": None, "until_epoch": epochs})


def _manifest(folder: Path) -> dict[str, Any]:
    return {
        name: value for name, value in read_json(folder / MANIFEST_FILE).items() if name not in ("version", "files")
    }


def _calibration(folder: Path) -> Calibration:
    return Calibration.read(folder, weights_sha256(folder))


def _publish_as(
    attempt: Attempt, source: Path, target: Path, *, about: dict[str, Any], calibration: Calibration
) -> None:
    model, config, _ = read_model(source)
    publish_model(target, model, config, manifest=about, lease=attempt.lease)
    calibration.write(target, weights_sha256(target), attempt.lease)


def refit_on_worker(context: WorkerContext[RefitSpec]) -> int:
    """Train, and publish the model of the last epoch in the task's own folder; return the number of training images."""
    setup = setup_of_training(context)
    if setup is None:
        return 0
    train_model(setup)
    index, model = setup.index, setup.model
    if context.process_group.is_rank_zero:
        config = setup.config.model_copy(update={"backbone_sha256": backbone_sha256(model.backbone)})
        attempt, paths = context.task.attempt, context.task.paths
        about = {"run": attempt.paths.run_id, "data": index.digest}
        publish_model(paths.best, model, config, manifest=about, lease=attempt.lease)
    setup.context.process_group.barrier()
    return index.samples_in(SPLIT)
