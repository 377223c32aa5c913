"""Publishes the best model of a training, with its calibration and its metrics on the validation split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainer.distributed.worker import WorkerTask
from trainer.evaluation.scoring import ModelOutputs, classifier_outputs, save_predictions, split_metrics, subgroups
from trainer.evaluation.seen_images import FEATURE_PRECISION, shards_of_model
from trainer.evaluation.seen_images import KEY as SHARDS_KEY
from trainer.evaluation.training_text import BEFORE_SCALING
from trainer.model.bundle import publish_model, weights_sha256
from trainer.model.weights import backbone_sha256
from trainer.specs import SearchSpec, TrainSpec
from trainer.training.baselines import Baseline, baselines_on_split, figures_before_scaling
from trainer.training.head_fit import HeadFit
from trainer.training.model_setup import TrainingSetup, class_weights
from trainer.training.train_state import TrainState


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """What a training reports to the driver.

    Attributes:
        metrics: Of the published model on the validation split; empty on ranks other than 0.
        details: The other keys of `result.json`.
    """

    metrics: dict[str, Any]
    details: dict[str, Any]


def publish_best(setup: TrainingSetup, state: TrainState) -> TrainOutcome:
    """Publish the trained model and return its metrics; every rank must call this.

    Raises:
        Stopped: The run was asked to stop while baselines were fitted; the model is published.
    """
    context, index = setup.context, setup.index
    features_of = ("valid", setup.spec.split) if _has_baselines(setup) else ("valid",)
    context.progress.start_phase("evaluate", total=sum(index.samples_in(split) for split in features_of))
    metrics = score_and_publish(setup, origin={"epoch": state.best_epoch})
    baselines = [one.to_json() for one in _baselines(setup)] if _has_baselines(setup) else []
    context.process_group.barrier()
    by_steps = {"best_epoch": state.best_epoch, "micro_batches": state.micro_batches}
    details = {
        **(by_steps if setup.spec.trains_by_steps else {}),
        **training_details(setup, setup.spec.split),
        **({"baselines": baselines} if baselines else {}),
    }
    return TrainOutcome(metrics=metrics, details=details)


def training_details(setup: TrainingSetup, split: str) -> dict[str, Any]:
    """Return what `result.json` says about any training; `split` is what the published model was trained on."""
    weights = class_weights(setup.spec, setup.index, torch.device("cpu"), split=split)
    return {
        "precision": setup.config.precision,
        **feature_precision(setup.context.task),
        "workers": setup.context.process_group.world_size,
        "device": setup.device.type,
        "class_weights": None if weights is None else _rounded(weights.tolist()),
        **_gpu_details(setup.device),
    }


def feature_precision(task: WorkerTask[TrainSpec] | WorkerTask[SearchSpec]) -> dict[str, str]:
    """Return the precision of the stored features that models are trained on; nothing if there are none."""
    return {FEATURE_PRECISION: task.attempt.settings.cache_precision} if task.spec.reads_features else {}


def _has_baselines(setup: TrainingSetup) -> bool:
    """Whether the run has the features of both splits, and is not a trial."""
    return setup.spec.reads_features and setup.context.task.trial is None


def _baselines(setup: TrainingSetup) -> list[Baseline]:
    """Return the baselines on the valid split; a training on features runs in a group of one worker."""
    extractor, split = setup.extractor, setup.spec.split
    extractor.extract(split)
    train, valid = extractor.features_of(split), extractor.features_of("valid")
    context = setup.context
    fit = HeadFit(
        spec=setup.spec,
        config=setup.config,
        device=setup.device,
        stop_reason=context.stop.reason,
        on_step=context.add_step,
    )
    return baselines_on_split(fit, train, valid)


def score_and_publish(setup: TrainingSetup, *, origin: dict[str, Any]) -> dict[str, Any]:
    """Score the model on the validation split as `evaluate` does and publish it from rank 0; return its metrics.

    Every rank must call this; ranks other than 0 return no metrics. `origin` goes into the manifest.

    Raises:
        LeaseLost: A newer attempt owns the run.
        CheckpointError: The storage is full.
    """
    published, found = _validation_outputs(setup)
    if not setup.context.process_group.is_rank_zero:
        return {}
    return publish_scored(published, found, "valid", origin=origin)


def publish_scored(
    setup: TrainingSetup,
    found: ModelOutputs,
    split: str,
    *,
    origin: Mapping[str, Any],
    judged: Mapping[str, Any] | None = None,
    beside: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> dict[str, Any]:
    """Fit the calibration on the outputs for a split, publish the model, and return the metrics; on rank 0.

    The metrics that are returned have `BEFORE_SCALING` too, which the manifest of the model does not need.

    Args:
        setup: The model and its description.
        found: The outputs that the model is judged by.
        split: The split that they are about.
        origin: Goes into the manifest.
        judged: Goes into the metrics: how the outputs were computed, if not by the model itself.
        beside: Further files of the published model.

    Raises:
        LeaseLost: A newer attempt owns the run.
        CheckpointError: The storage is full.
    """
    context, classes = setup.context, setup.config.classes
    calibration = found.objective.fit_calibration(
        found.probabilities(), found.labels, data=setup.index.digest, classes=classes
    )
    metrics = {
        **split_metrics(found, classes, calibration, split, positive=setup.config.positive, seed=setup.spec.seed),
        **(judged or {}),
    }
    metrics |= subgroups(found, setup.index, calibration, metrics, seed=setup.spec.seed)
    attempt, folder = context.task.attempt, context.task.paths.best  # of a trial: in the folder of the trial
    about = {"run": attempt.paths.run_id, "metrics": metrics, "data": setup.index.digest, **origin}
    about |= feature_precision(setup.context.task)
    about[SHARDS_KEY] = shards_of_model(setup.index)
    publish_model(folder, setup.model, setup.config, manifest=about, lease=attempt.lease, beside=beside)
    weights = weights_sha256(folder)
    calibration.write(folder, weights, attempt.lease)
    save_predictions(context, found, setup.index, metrics=metrics, calibration=calibration, model=weights)
    return {**metrics, BEFORE_SCALING: figures_before_scaling(found, metrics)}


def _validation_outputs(setup: TrainingSetup) -> tuple[TrainingSetup, ModelOutputs]:
    """Return the setup of the trained model and its outputs on the validation split; every rank must call this.

    Under a backbone that has not changed, that is the same setup, with the features that it has loaded.
    """
    config = setup.config.model_copy(update={"backbone_sha256": backbone_sha256(setup.model.backbone)})
    trained = setup if config == setup.config else replace(setup, config=config)
    return trained, classifier_outputs(setup.context, trained.extractor, setup.model, "valid")


def _rounded(weights: list[Any]) -> list[Any]:
    """Return the weights with four decimal places; those of several labels are two lists: absent, present."""
    return [_rounded(weight) if isinstance(weight, list) else round(weight, 4) for weight in weights]


def _gpu_details(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    return {"gpu": torch.cuda.get_device_name(device), "gpu_peak_gigabytes": round(peak, 2)}
