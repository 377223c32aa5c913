"""`evaluate`: compute the metrics of a published model on one split."""

import logging
from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from cluster.lease import Lease
from cluster.settings import Settings
from data_shards.index import ShardIndex
from trainer.attempt import Attempt
from trainer.data.feature_extraction import FeatureExtractor
from trainer.data.run_data import run_index, training_data
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import CheckpointError, SpecError
from trainer.evaluation.decision_text import decision_line, threshold_lines
from trainer.evaluation.metric_text import prevalence_lines
from trainer.evaluation.named_thresholds import (
    ChoiceImages,
    StoredModel,
    choose_named,
    read_calibration,
    refuse_taken_name,
    store_named,
    threshold_evidence,
    with_named,
)
from trainer.evaluation.out_of_fold import OutOfFold, is_cross_validated
from trainer.evaluation.scoring import at_prevalence, classifier_outputs, save_predictions, split_metrics, subgroups
from trainer.evaluation.seen_images import count_evaluation, evaluation_lines, feature_precisions, seen_images
from trainer.model.bundle import check_unchanged, read_model, weights_sha256
from trainer.model.checkpoint_folder import read_verified_manifest
from trainer.model.efficientnet import Classifier
from trainer.model.head import HeadConfig
from trainer.model.names import HEAD_FILE, published_model
from trainer.model.precision import usable_config
from trainer.model.thresholds import NamedThreshold, read_threshold
from trainer.report.write import write_report
from trainer.result import RunResult
from trainer.specs import EvaluateSpec, SearchSpec, build
from trainer.specs.image_size import check_model_input
from trainer.specs.positive import refuse_unknown_positive, refuse_without_positive
from trainer.training.features import run_on_features
from trainer.training.model_setup import extractor_for

logger = logging.getLogger(__name__)


def evaluate(attempt: Attempt, spec: EvaluateSpec) -> RunResult:
    """Evaluate a published model on one split and return its metrics.

    Raises:
        SpecError: The data set has no such split, or the model no such class.
        ModelMismatch: The classes of the data set and of the model differ, or its images are smaller than the model's
            input.
        CheckpointError: The model is absent, damaged or of an unsupported version.
    """
    folder = model_folder(spec.model, attempt.settings)
    index = run_index(attempt.lease, spec.shards)
    config = HeadConfig.read(folder / HEAD_FILE)
    _check_compatible(spec, config, index)
    _check_threshold(spec, folder, config)
    if spec.min_sensitivity:
        _check_images_to_choose_on(folder, index, spec.shards)
    weights = weights_sha256(folder)
    task = WorkerTask(attempt=attempt, spec=spec, source=folder, longest_shard=index.longest_shard)
    outcome = _run(task)
    manifest = check_unchanged(folder, weights)
    version = training_data(manifest, index)
    result = RunResult(
        kind=spec.kind,
        checkpoint=str(folder),
        metrics=outcome,
        seconds=round(attempt.seconds, 3),
        model_sha256=weights,
        details={
            "seen": seen_images(manifest, index, spec.split),
            "evaluations_of_split": count_evaluation(attempt.paths.storage, index, spec.split, attempt.paths.run_id),
            **({"trained_on": version} if version else {}),
            **(feature_precisions(manifest, attempt.settings.cache_precision) if spec.cache else {}),
        },
    )
    for line in evaluation_lines(result.details, spec.split):
        logger.info("%s", line)
    write_report(attempt, spec, result)
    return result


def _run(task: WorkerTask[EvaluateSpec]) -> dict[str, Any]:
    """Return the metrics; without the cache, each worker keeps the features that it computes to itself."""
    if task.spec.cache:
        return run_on_features(evaluate_on_worker, features_on_worker, task)
    return run_on_workers(evaluate_on_worker, task)


def model_folder(model: str, settings: Settings) -> Path:
    """Return the folder of the published model that a run id or a path refers to.

    Raises:
        CheckpointError: There is no published model there.
    """
    if folder := published_model(Path(model).expanduser(), settings.runs / model):
        return folder
    raise CheckpointError(
        f"{model} is not a published model; give a folder with {HEAD_FILE}, or the id of a run that succeeded"
    )


def evaluate_on_worker(context: WorkerContext[EvaluateSpec]) -> dict[str, Any]:
    """Evaluate the model and return its metrics; runs on each Ray Train worker."""
    spec = context.spec
    folder = model_folder(spec.model, context.task.attempt.settings)
    model, config, manifest = read_model(folder)
    index = run_index(context.task.attempt.lease, spec.shards)
    out_of_fold, splits = _splits(spec, manifest, index)
    extraction = _extracted(context, model.to(context.process_group.device), config, index, splits)
    context.progress.start_phase("evaluate", total=sum(index.samples_in(split) for split in splits))
    found = {split: classifier_outputs(context, extraction, model, split) for split in splits}
    stored = StoredModel.of(folder, config, manifest)
    images: ChoiceImages | None = None
    if out_of_fold:
        outputs = OutOfFold.read(folder, config).outputs
        images = ChoiceImages(outputs=outputs, chosen_on="out of fold", data=str(manifest["data"]))
    elif spec.min_sensitivity:
        images = ChoiceImages(outputs=found["valid"], chosen_on="valid", data=index.digest)
    named = _named_threshold(spec, stored, images)
    calibration = read_calibration(stored, None)
    if named is not None:
        calibration = with_named(calibration, named, config)
    positive = spec.positive or calibration.positive or config.positive
    metrics = split_metrics(
        found[spec.split], config.classes, calibration, spec.split, positive=positive, seed=spec.seed
    )
    metrics |= subgroups(found[spec.split], index, calibration, metrics, seed=spec.seed)
    if spec.prevalence is not None:
        metrics["at_prevalence"] = at_prevalence(
            found[spec.split], config.classes, calibration, positive=str(positive), prevalence=spec.prevalence
        )
    if named is not None:
        metrics |= {"threshold_name": named.name, "threshold_choices": threshold_evidence(named, metrics, index)}
    if context.process_group.is_rank_zero:
        if spec.min_sensitivity and named is not None:
            _store(named, stored, str(positive), context.task.attempt.lease)
        lines = (f"decision: {decision_line(metrics)}", *threshold_lines(metrics), *prevalence_lines(metrics))
        for line in lines:
            logger.info("%s", line)
    save_predictions(context, found[spec.split], index, metrics=metrics, calibration=calibration, model=stored.weights)
    return metrics


def features_on_worker(context: WorkerContext[EvaluateSpec]) -> None:
    """Extract the features that the cache lacks; runs on each Ray Train worker."""
    spec, attempt = context.spec, context.task.attempt
    model, config, manifest = read_model(model_folder(spec.model, attempt.settings))
    index = run_index(attempt.lease, spec.shards)
    _, splits = _splits(spec, manifest, index)
    _extracted(context, model.to(context.process_group.device), config, index, splits)


def _extracted(
    context: WorkerContext[EvaluateSpec],
    model: Classifier,
    config: HeadConfig,
    index: ShardIndex,
    splits: tuple[str, ...],
) -> FeatureExtractor:
    """Return the extractor after it has extracted the features of the splits to evaluate."""
    spec = context.spec
    usable = usable_config(config, context.process_group)
    extraction = extractor_for(context, spec.shards, index, model, usable, cached=spec.cache)
    context.progress.start_phase("features", total=sum(index.samples_in(split) for split in splits))
    extraction.extract(*splits)
    return extraction


def _splits(spec: EvaluateSpec, manifest: dict[str, Any], index: ShardIndex) -> tuple[bool, tuple[str, ...]]:
    """Return whether a threshold is chosen on predictions out of fold, and the splits that the model is run on."""
    out_of_fold = bool(spec.min_sensitivity) and _chooses_out_of_fold(manifest, index)
    both = spec.min_sensitivity and not out_of_fold
    return out_of_fold, tuple(dict.fromkeys(["valid", spec.split] if both else [spec.split]))


def _named_threshold(spec: EvaluateSpec, model: StoredModel, images: ChoiceImages | None) -> NamedThreshold | None:
    """Return the threshold to evaluate at: chosen on `images`, or the stored one; None for the default decision."""
    if spec.min_sensitivity is not None and images is not None and spec.chosen_name is not None:
        return choose_named(
            model,
            images,
            name=spec.chosen_name,
            positive=str(spec.positive or model.config.positive),
            min_sensitivity=spec.min_sensitivity,
        )
    return None if spec.threshold is None else read_threshold(model.folder, spec.threshold, weights=model.weights)


def _store(named: NamedThreshold, model: StoredModel, positive: str, lease: Lease) -> None:
    """Write the threshold beside the model; a read-only model folder does not fail the evaluation."""
    try:
        store_named(named, model, positive, lease)
    except (CheckpointError, StorageError) as error:
        logger.warning("the threshold cannot be used by name, because it could not be stored: %s", error)


def _check_threshold(spec: EvaluateSpec, folder: Path, config: HeadConfig) -> None:
    """Raise SpecError if the threshold to use does not exist, fits another class, or its new name is taken."""
    if spec.chosen_name is not None:
        refuse_taken_name(folder, config, spec.chosen_name, str(spec.positive or config.positive))
    if spec.threshold is not None:
        classes = read_threshold(folder, spec.threshold).classes
        if spec.positive is not None and spec.positive not in classes:
            raise SpecError(
                f"threshold {spec.threshold!r} is about {', '.join(classes)} and --positive is {spec.positive}; "
                "leave out one of them"
            )


def _check_images_to_choose_on(folder: Path, index: ShardIndex, shards: str) -> None:
    """Raise SpecError if there are no images to choose a threshold on that the model has not been trained on."""
    manifest = read_verified_manifest(folder)
    if _chooses_out_of_fold(manifest, index):
        return
    if "valid" not in index.splits:
        raise SpecError(f"{shards} has no split 'valid' to choose a threshold on; leave out --min-sensitivity")
    if _was_trained_on_valid(manifest, index):
        raise SpecError(
            "--min-sensitivity needs a validation split without training images, and this refit was trained on it; "
            f"evaluate {folder.parent / 'chosen'} instead, the best trial's own model"
        )


def _chooses_out_of_fold(manifest: dict[str, Any], index: ShardIndex) -> bool:
    """Whether a threshold is chosen on predictions out of fold: the valid split is absent, or was trained on."""
    return is_cross_validated(manifest) and ("valid" not in index.splits or _was_trained_on_valid(manifest, index))


def _was_trained_on_valid(manifest: dict[str, Any], index: ShardIndex) -> bool:
    """Whether the model was trained on train and valid together, and on images of this validation split."""
    seen = seen_images(manifest, index, "valid") or {}
    return bool(manifest.get("refit") and (index.version_with(str(manifest.get("data"))) or seen.get("trained")))


def _check_compatible(spec: EvaluateSpec, config: HeadConfig, index: ShardIndex) -> None:
    config.check_data(index, spec.shards)
    refuse_unknown_positive(spec.positive, index.classes)
    refuse_without_positive(spec, config.positive, index)
    check_model_input(config.image_size, index, spec.shards)
    if spec.split not in index.splits:
        raise SpecError(f"{spec.shards} has no split {spec.split!r}; choose one of {', '.join(index.splits)}")


def test_metrics(task: WorkerTask[SearchSpec], index: ShardIndex, folder: Path) -> dict[str, Any]:
    """Return the metrics of a published model on the test split, or on the valid split if there is no test split."""
    spec = task.spec
    evaluation = build(
        EvaluateSpec,
        model=str(folder),
        shards=spec.shards,
        split="test" if "test" in index.splits else "valid",
        seed=spec.seed,
        workers=spec.workers,
        gpus_per_worker=spec.gpus_per_worker,
    )
    paths = task.attempt.paths
    count_evaluation(paths.storage, index, evaluation.split, paths.run_id)
    return _run(WorkerTask(attempt=task.attempt, spec=evaluation, source=folder, longest_shard=index.longest_shard))
