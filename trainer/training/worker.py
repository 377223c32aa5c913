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
from trainer.data.batches import Source, StoredFeatures, StreamedImages
from trainer.data.transforms import Augmentation, normalised
from trainer.distributed.worker import Post, in_worker
from trainer.evaluation.calibration import calibrated
from trainer.evaluation.scoring import BATCH, Scored, epoch_figures, figures_of, keep_predictions, model_on, scored
from trainer.model.bundle import publish_model, weights_sha256
from trainer.model.efficientnet import Classifier
from trainer.model.folded_backbone import FastBackbone
from trainer.model.head import HeadConfig
from trainer.model.weights import backbone_sha256
from trainer.specs import TrainSpec
from trainer.training.checkpointer import Records
from trainer.training.ema import Average
from trainer.training.loop import Course, train_from
from trainer.training.micro_batching import fits_into_memory, parts_of_step
from trainer.training.model_setup import class_weights, extraction_for, fresh_model
from trainer.training.optimizer import build_optimizer
from trainer.training.preemption import Preemption
from trainer.training.train_state import Position

PRETRAINED_RATE = 0.1  # of the head's; what is learnt already needs smaller steps than what is new


def train_on_worker(config: dict[str, Any]) -> Any:
    """Train as `config["order"]` says; the entry point of each Ray Train worker."""
    return in_worker(_train, config)


def _train(post: Post) -> dict[str, Any]:
    spec: TrainSpec = post.order.spec
    index = read_index(spec.shards)
    model, config = fresh_model(post, index)
    position = trained(post, index, model, config)
    return _publish(post, index, model, config, position)


def trained(post: Post, index: ShardIndex, model: Classifier, config: HeadConfig) -> Position:
    """Train the model and return where that ended; it is then that of the best epoch, or the last if none is best."""
    spec: TrainSpec = post.order.spec
    module = model.head if spec.freeze == "all" else model
    records = Records(post, module, _optimizer(post, model), Average(module, spec.ema))
    position = records.resume()
    for epochs, frozen in phases(spec):
        if position.epoch < min(epochs.stop, spec.last_epoch):
            source = _source(post, index, model, config, frozen=frozen)
            course = _course(post, index, config, records, source=source, epochs=epochs, frozen=frozen)
            course = course if frozen else replace(course, parts=_parts(course))
            with one_thread(isinstance(source, StoredFeatures)):
                position = train_from(course, position)
    if position.best_epoch:
        records.load_best(position)
    else:
        records.average.settle()
    return position


def phases(spec: TrainSpec) -> list[tuple[range, bool]]:
    """Return the epochs (from 0) of each phase, and whether the whole backbone is frozen in it."""
    if spec.freeze == "all":
        return [(range(spec.epochs), True)]
    head, rest = range(spec.head_epochs), range(spec.head_epochs, spec.epochs)
    return [(head, True), (rest, False)] if head else [(rest, False)]


def _course(
    post: Post,
    index: ShardIndex,
    config: HeadConfig,
    records: Records,
    *,
    source: Source,
    epochs: range,
    frozen: bool,
) -> Course:
    spec: TrainSpec = post.order.spec
    bf16 = config.precision == "bf16" and not frozen
    module, judged = (_trains(whole, frozen) for whole in (records.module, records.average.module))
    # Of images twice a worker's share of a step: nothing is kept for backward, so that fits where steps do.
    at_once = BATCH if isinstance(source, StoredFeatures) else 2 * math.ceil(spec.batch_size / spec.workers)

    def validate() -> dict[str, Any]:
        found = scored(judged, source, index, "valid", post.ranks, autocast=bf16, at_once=at_once)
        return epoch_figures(found)

    return Course(
        spec=spec,
        index=index,
        ranks=post.ranks,
        module=module,
        after_step=records.average.follow,
        optimizer=records.optimizer,
        source=source,
        class_weights=class_weights(spec, index, post.ranks.device),
        validate=validate if spec.split == "train" else None,
        save=records.save,
        save_is_due=records.save_is_due,
        record=records.record,
        count=post.count,
        begin_epoch=partial(_begin_epoch, post, index),
        stop_reason=post.stop.reason,
        preemption=Preemption(ray.train.get_preemption_info),
        autocast=bf16,
        epochs=epochs,
    )


def _parts(course: Course) -> int:
    """Return into how many parts a step of the whole network is cut; a CPU has memory enough."""
    spec, ranks = course.spec, course.ranks
    if ranks.device.type != "cuda":
        return 1

    def fits(images: int) -> bool:
        return fits_into_memory(
            course.module, images, image_size=spec.image_size, device=ranks.device, autocast=course.autocast
        )

    plan = course.plan(course.span.start)
    return parts_of_step(spec, ranks, fits, smallest=plan.samples // plan.batches // ranks.world_size)


def _trains(whole: nn.Module, frozen: bool) -> nn.Module:
    """Return the head where the whole backbone is frozen: of the classifier, or what stands for all of it."""
    return whole.head if frozen and isinstance(whole, Classifier) else whole


def _source(post: Post, index: ShardIndex, model: Classifier, config: HeadConfig, *, frozen: bool) -> Source:
    """Return where batches come from: features where the whole backbone is frozen, else images."""
    spec: TrainSpec = post.order.spec
    if frozen and spec.cache and not spec.augment:
        return _stored(post, index, model, config)
    normalise = partial(normalised, config=config)
    augment = Augmentation(spec.augment_strength) if spec.augment else None
    if frozen:
        forward = FastBackbone(model.backbone, config.precision, post.ranks.device)

    def prepare(images: Tensor, training: bool) -> Tensor:
        varied = augment(images) if augment and training else images
        return forward(varied, normalise).to(images.device) if frozen else normalise(varied)

    return StreamedImages(
        location=spec.shards,
        index=index,
        image_size=spec.image_size,
        loader_workers=post.loader_workers,
        device=post.ranks.device,
        prepare=prepare,
    )


def _stored(post: Post, index: ShardIndex, model: Classifier, config: HeadConfig) -> StoredFeatures:
    spec: TrainSpec = post.order.spec
    splits = ("train", "valid") if spec.split == "train" else (spec.split,)
    extraction = extraction_for(post, spec.shards, index, model, config, cached=True)
    post.progress.begin("features", total=sum(index.samples_in(split) for split in splits))
    for split in splits:
        extraction.prepare(split)
    features = {split: extraction.of_split(split) for split in splits}
    return StoredFeatures(
        values={split: found.values.to(post.ranks.device) for split, found in features.items()},
        labels={split: found.labels.to(post.ranks.device) for split, found in features.items()},
    )


def _optimizer(post: Post, model: Classifier) -> torch.optim.Optimizer:
    spec: TrainSpec = post.order.spec
    return build_optimizer(
        model.head,
        model.backbone,
        backbone_factor=PRETRAINED_RATE if post.order.source else 1.0,
        weight_decay=spec.weight_decay,
        device=post.ranks.device,
    )


def _begin_epoch(post: Post, index: ShardIndex, position: Position) -> None:
    spec: TrainSpec = post.order.spec
    post.progress.begin(
        "train",
        total=index.samples_in(spec.split) * spec.last_epoch,
        done=position.images,
        epoch=position.epoch + 1,
        epochs=spec.last_epoch,
    )


def _publish(
    post: Post, index: ShardIndex, model: Classifier, config: HeadConfig, position: Position
) -> dict[str, Any]:
    """Publish the best model and return its figures on the validation split, reckoned as `evaluate` reckons them."""
    spec: TrainSpec = post.order.spec
    config = config.model_copy(update={"backbone_sha256": backbone_sha256(model.backbone)})
    extraction = extraction_for(post, spec.shards, index, model, config, cached=spec.cache)
    post.progress.begin("evaluate", total=index.samples_in("valid"))
    found = model_on(post, extraction, model, "valid")
    more = {"epoch": position.best_epoch}
    outcome = publish_judged(post, index, model, config, found=found, more=more) if post.ranks.leads else {}
    post.ranks.meet()
    weights = class_weights(spec, index, torch.device("cpu"))
    details = {
        "best_epoch": position.best_epoch,
        "micro_batches": position.parts,
        "precision": config.precision,
        "workers": post.ranks.world_size,
        "device": post.ranks.device.type,
        "class_weights": None if weights is None else [round(w, 4) for w in weights.tolist()],
        **_gpu_use(post.ranks.device),
    }
    return {"metrics": outcome, "details": details}


def _gpu_use(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    return {"gpu": torch.cuda.get_device_name(device), "gpu_peak_gigabytes": round(peak, 2)}


def publish_judged(
    post: Post, index: ShardIndex, model: Classifier, config: HeadConfig, *, found: Scored, more: dict[str, Any]
) -> dict[str, Any]:
    """Publish the model and how its probabilities are to be read; return its figures on the validation split.

    `more` says in the manifest where the model comes from.
    """
    attempt, spec = post.order.attempt, post.order.spec
    calibration = calibrated(found.probabilities(), found.labels, data=index.digest, classes=config.classes)
    outcome = figures_of(found, config.classes, calibration, "valid", seed=spec.seed)
    keep_predictions(post, found)
    attempt.lease.check()
    about = {"run": attempt.paths.run_id, "metrics": outcome, "data": index.digest, **more}
    publish_model(attempt.paths.best, model, config, about=about)
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
