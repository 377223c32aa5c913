"""Publishes the best model of a training, with its calibration and its metrics on the validation split."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from trainer.evaluation.scoring import classifier_outputs, save_predictions, split_metrics
from trainer.evaluation.seen_images import KEY as SHARDS_KEY
from trainer.evaluation.seen_images import shards_of_model
from trainer.model.bundle import publish_model, weights_sha256
from trainer.model.weights import backbone_sha256
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
    """Publish the trained model and return its metrics; every rank must call this."""
    context, device = setup.context, setup.device
    context.progress.start_phase("evaluate", total=setup.index.samples_in("valid"))
    metrics = score_and_publish(setup, origin={"epoch": state.best_epoch})
    context.process_group.barrier()
    weights = class_weights(setup.spec, setup.index, torch.device("cpu"))
    details = {
        "best_epoch": state.best_epoch,
        "micro_batches": state.micro_batches,
        "precision": setup.config.precision,
        "workers": context.process_group.world_size,
        "device": device.type,
        "class_weights": None if weights is None else _rounded(weights.tolist()),
        **_gpu_details(device),
    }
    return TrainOutcome(metrics=metrics, details=details)


def score_and_publish(setup: TrainingSetup, *, origin: dict[str, Any]) -> dict[str, Any]:
    """Score the model on the validation split as `evaluate` does and publish it from rank 0; return its metrics.

    Every rank must call this; ranks other than 0 return no metrics. `origin` goes into the manifest.

    Raises:
        LeaseLost: A newer attempt owns the run.
        CheckpointError: The storage is full.
    """
    context, classes = setup.context, setup.config.classes
    config = setup.config.model_copy(update={"backbone_sha256": backbone_sha256(setup.model.backbone)})
    extractor = replace(setup, config=config).extractor(cached=setup.spec.cache)
    found = classifier_outputs(context, extractor, setup.model, "valid")
    if not context.process_group.is_rank_zero:
        return {}
    calibration = found.objective.fit_calibration(
        found.probabilities(), found.labels, data=setup.index.digest, classes=classes
    )
    metrics = split_metrics(found, classes, calibration, "valid", seed=setup.spec.seed)
    attempt, folder = context.task.attempt, context.task.paths.best  # of a trial: in the folder of the trial
    about = {"run": attempt.paths.run_id, "metrics": metrics, "data": setup.index.digest, **origin}
    about[SHARDS_KEY] = shards_of_model(setup.index)
    publish_model(folder, setup.model, config, manifest=about, lease=attempt.lease)
    weights = weights_sha256(folder)
    calibration.write(folder, weights, attempt.lease)
    save_predictions(context, found, setup.index, metrics=metrics, calibration=calibration, model=weights)
    return metrics


def _rounded(weights: list[Any]) -> list[Any]:
    """Return the weights with four decimal places; those of several labels are two lists: absent, present."""
    return [_rounded(weight) if isinstance(weight, list) else round(weight, 4) for weight in weights]


def _gpu_details(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    return {"gpu": torch.cuda.get_device_name(device), "gpu_peak_gigabytes": round(peak, 2)}
