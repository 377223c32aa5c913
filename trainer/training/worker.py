"""`train` on one Ray Train worker: model, data, loop, and the publishing of the best."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray.train
import torch
from torch import Tensor, nn

from data_shards.index import ShardIndex, read_index
from trainer.data.batches import BatchLoader, FeatureLoader, ImageLoader
from trainer.data.transforms import Augmentation, normalised
from trainer.distributed.worker import WorkerContext, in_worker
from trainer.evaluation.calibration import fit_calibration
from trainer.evaluation.scoring import (
    BATCH,
    ModelOutputs,
    classifier_outputs,
    epoch_metrics,
    model_outputs,
    save_predictions,
    split_metrics,
)
from trainer.model.bundle import publish_model, weights_sha256
from trainer.model.efficientnet import Classifier
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig
from trainer.model.weights import backbone_sha256
from trainer.specs import TrainSpec
from trainer.training.checkpointer import Checkpointer
from trainer.training.ema import ModelEma
from trainer.training.loop import TrainLoop, train_from
from trainer.training.micro_batching import choose_micro_batches, fits_in_memory
from trainer.training.model_setup import build_fresh_model, class_weights, extractor_for
from trainer.training.optimizer import build_optimizer
from trainer.training.preemption import PreemptionWatcher
from trainer.training.train_state import TrainState

PRETRAINED_RATE = 0.1  # of the head's; what is learnt already needs smaller steps than what is new


def train_on_worker(config: dict[str, Any]) -> Any:
    """Train as `config["task"]` says; the entry point of each Ray Train worker."""
    return in_worker(_train, config)


def _train(context: WorkerContext) -> dict[str, Any]:
    spec: TrainSpec = context.task.spec
    index = read_index(spec.shards)
    model, config = build_fresh_model(context, index)
    state = trained(context, index, model, config)
    return _publish(context, index, model, config, state)


def trained(context: WorkerContext, index: ShardIndex, model: Classifier, config: HeadConfig) -> TrainState:
    """Train the model and return where that ended; it is then that of the best epoch, or the last if none is best."""
    spec: TrainSpec = context.task.spec
    module = model.head if spec.freeze == "all" else model
    checkpointer = Checkpointer(context, module, _optimizer(context, model), ModelEma(module, spec.ema))
    state = checkpointer.resume()
    for epochs, frozen in phases(spec):
        if state.epoch < min(epochs.stop, spec.last_epoch):
            source = _source(context, index, model, config, frozen=frozen)
            loop = _course(context, index, config, checkpointer, source=source, epochs=epochs, frozen=frozen)
            loop = loop if frozen else replace(loop, micro_batches=_parts(loop))
            with one_thread(isinstance(source, FeatureLoader)):
                state = train_from(loop, state)
    if state.best_epoch:
        checkpointer.load_best(state)
    else:
        checkpointer.ema.apply_to_module()
    return state


def phases(spec: TrainSpec) -> list[tuple[range, bool]]:
    """Return the epochs (from 0) of each phase, and whether the whole backbone is frozen in it."""
    if spec.freeze == "all":
        return [(range(spec.epochs), True)]
    head, rest = range(spec.head_epochs), range(spec.head_epochs, spec.epochs)
    return [(head, True), (rest, False)] if head else [(rest, False)]


def _course(
    context: WorkerContext,
    index: ShardIndex,
    config: HeadConfig,
    checkpointer: Checkpointer,
    *,
    source: BatchLoader,
    epochs: range,
    frozen: bool,
) -> TrainLoop:
    spec: TrainSpec = context.task.spec
    bf16 = config.precision == "bf16" and not frozen
    module, judged = (_trains(whole, frozen) for whole in (checkpointer.module, checkpointer.ema.module))
    # Of images twice a worker's share of a step: nothing is kept for backward, so that fits where steps do.
    at_once = BATCH if isinstance(source, FeatureLoader) else 2 * math.ceil(spec.batch_size / spec.workers)

    def validate() -> dict[str, Any]:
        found = model_outputs(judged, source, index, "valid", context.process_group, autocast=bf16, at_once=at_once)
        return epoch_metrics(found)

    return TrainLoop(
        spec=spec,
        index=index,
        process_group=context.process_group,
        module=module,
        after_step=checkpointer.ema.update,
        optimizer=checkpointer.optimizer,
        source=source,
        class_weights=class_weights(spec, index, context.process_group.device),
        validate=validate if spec.split == "train" else None,
        save=checkpointer.save,
        save_is_due=checkpointer.save_is_due,
        record=checkpointer.record,
        count=context.count,
        begin_epoch=partial(_begin_epoch, context, index),
        stop_reason=context.stop.reason,
        preemption=PreemptionWatcher(ray.train.get_preemption_info),
        autocast=bf16,
        epochs=epochs,
    )


def _parts(loop: TrainLoop) -> int:
    """Return into how many parts a step of the whole network is cut; a CPU has memory enough."""
    spec, process_group = loop.spec, loop.process_group
    if process_group.device.type != "cuda":
        return 1

    def fits(images: int) -> bool:
        return fits_in_memory(
            loop.module, images, image_size=spec.image_size, device=process_group.device, autocast=loop.autocast
        )

    plan = loop.plan(loop.span.start)
    return choose_micro_batches(
        spec, process_group, fits, smallest=plan.samples // plan.batches // process_group.world_size
    )


def _trains(whole: nn.Module, frozen: bool) -> nn.Module:
    """Return the head where the whole backbone is frozen: of the classifier, or what stands for all of it."""
    return whole.head if frozen and isinstance(whole, Classifier) else whole


def _source(
    context: WorkerContext, index: ShardIndex, model: Classifier, config: HeadConfig, *, frozen: bool
) -> BatchLoader:
    """Return where batches come from: features where the whole backbone is frozen, else images."""
    spec: TrainSpec = context.task.spec
    if frozen and spec.cache and not spec.augment:
        return _stored(context, index, model, config)
    normalise = partial(normalised, config=config)
    augment = Augmentation(spec.augment_strength) if spec.augment else None
    if frozen:
        forward = FoldedBackbone(model.backbone, config.precision, context.process_group.device)

    def prepare(images: Tensor, training: bool) -> Tensor:
        varied = augment(images) if augment and training else images
        return forward(varied, normalise).to(images.device) if frozen else normalise(varied)

    return ImageLoader(
        location=spec.shards,
        index=index,
        image_size=spec.image_size,
        loader_workers=context.loader_workers,
        device=context.process_group.device,
        prepare=prepare,
    )


def _stored(context: WorkerContext, index: ShardIndex, model: Classifier, config: HeadConfig) -> FeatureLoader:
    spec: TrainSpec = context.task.spec
    splits = ("train", "valid") if spec.split == "train" else (spec.split,)
    extraction = extractor_for(context, spec.shards, index, model, config, cached=True)
    context.progress.start_phase("features", total=sum(index.samples_in(split) for split in splits))
    for split in splits:
        extraction.prepare(split)
    features = {split: extraction.of_split(split) for split in splits}
    return FeatureLoader(
        values={split: found.values.to(context.process_group.device) for split, found in features.items()},
        labels={split: found.labels.to(context.process_group.device) for split, found in features.items()},
    )


def _optimizer(context: WorkerContext, model: Classifier) -> torch.optim.Optimizer:
    spec: TrainSpec = context.task.spec
    return build_optimizer(
        model.head,
        model.backbone,
        backbone_factor=PRETRAINED_RATE if context.task.source else 1.0,
        weight_decay=spec.weight_decay,
        device=context.process_group.device,
    )


def _begin_epoch(context: WorkerContext, index: ShardIndex, state: TrainState) -> None:
    spec: TrainSpec = context.task.spec
    context.progress.start_phase(
        "train",
        total=index.samples_in(spec.split) * spec.last_epoch,
        done=state.images,
        epoch=state.epoch + 1,
        epochs=spec.last_epoch,
    )


def _publish(
    context: WorkerContext, index: ShardIndex, model: Classifier, config: HeadConfig, state: TrainState
) -> dict[str, Any]:
    """Publish the best model and return its figures on the validation split, reckoned as `evaluate` reckons them."""
    spec: TrainSpec = context.task.spec
    config = config.model_copy(update={"backbone_sha256": backbone_sha256(model.backbone)})
    extraction = extractor_for(context, spec.shards, index, model, config, cached=spec.cache)
    context.progress.start_phase("evaluate", total=index.samples_in("valid"))
    found = classifier_outputs(context, extraction, model, "valid")
    more = {"epoch": state.best_epoch}
    outcome = (
        publish_scored(context, index, model, config, found=found, more=more)
        if context.process_group.is_rank_zero
        else {}
    )
    context.process_group.barrier()
    weights = class_weights(spec, index, torch.device("cpu"))
    details = {
        "best_epoch": state.best_epoch,
        "micro_batches": state.micro_batches,
        "precision": config.precision,
        "workers": context.process_group.world_size,
        "device": context.process_group.device.type,
        "class_weights": None if weights is None else [round(w, 4) for w in weights.tolist()],
        **_gpu_use(context.process_group.device),
    }
    return {"metrics": outcome, "details": details}


def _gpu_use(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    return {"gpu": torch.cuda.get_device_name(device), "gpu_peak_gigabytes": round(peak, 2)}


def publish_scored(
    context: WorkerContext,
    index: ShardIndex,
    model: Classifier,
    config: HeadConfig,
    *,
    found: ModelOutputs,
    more: dict[str, Any],
) -> dict[str, Any]:
    """Publish the model and how its probabilities are to be read; return its figures on the validation split.

    `more` says in the manifest where the model comes from.
    """
    attempt, spec = context.task.attempt, context.task.spec
    calibration = fit_calibration(found.probabilities(), found.labels, data=index.digest, classes=config.classes)
    outcome = split_metrics(found, config.classes, calibration, "valid", seed=spec.seed)
    save_predictions(context, found)
    attempt.lease.check()
    about = {"run": attempt.paths.run_id, "metrics": outcome, "data": index.digest, **more}
    publish_model(attempt.paths.best, model, config, manifest=about)
    calibration.write(attempt.paths.best, weights_sha256(attempt.paths.best))
    return outcome


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute with one thread when `wanted`.

    A head's matrices are too small to share out: on a free machine one thread is as fast as two, and on a busy one
    the threads wait for each other, 147 ms a step instead of 11 measured on two cores under a load of 8.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
