"""`train` on one Ray Train worker: batches, phases, hooks of the loop, and the published model."""

import math
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.train
import torch
from torch import Tensor, nn

from data_shards.plan import EpochPlan
from trainer.data.batches import BatchLoader, FeatureLoader, ImageLoader
from trainer.data.transforms import Augmentation, normalised
from trainer.distributed.worker import WorkerContext
from trainer.evaluation.scoring import BATCH, epoch_metrics, evaluation_plan, model_outputs
from trainer.model.efficientnet import Classifier
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.precision import grad_scaler
from trainer.specs import TrainSpec
from trainer.training.checkpointer import Checkpointer
from trainer.training.cross_validation import cross_validate
from trainer.training.ema import ModelEma
from trainer.training.features import setup_of_training
from trainer.training.head_fit import HeadFit, one_thread
from trainer.training.loop import EpochMetrics, LoopHooks, TrainLoop, epoch_plan
from trainer.training.micro_batching import choose_micro_batches, fits_in_memory, warn_of_small_batches
from trainer.training.model_setup import TrainingSetup, class_weights
from trainer.training.preemption import PreemptionWatcher
from trainer.training.publish import TrainOutcome, publish_best
from trainer.training.train_state import TrainState


def train_on_worker(context: WorkerContext[TrainSpec]) -> TrainOutcome:
    """Train, publish the best model and return its metrics; runs on each Ray Train worker.

    A head on features is trained on rank 0 alone; the outcome of the other ranks is then empty.
    """
    setup = setup_of_training(context)
    if setup is None:
        return TrainOutcome(metrics={}, details={})
    if context.spec.folds is not None:
        return cross_validate(setup)
    if not context.spec.trains_by_steps:
        fit_linear_model(setup)
        return publish_best(setup, TrainState())
    return publish_best(setup, train_model(setup))


def fit_linear_model(setup: TrainingSetup) -> None:
    """Fit the linear head of the model on the train split, in a group of one worker.

    Raises:
        Stopped: The run was asked to stop while features were computed or the head was fitted.
        SpecError: A class has no image to train on.
    """
    context, split = setup.context, setup.spec.split
    context.progress.start_phase("features", total=setup.index.samples_in(split))
    setup.extractor.extract(split)
    train = setup.extractor.features_of(split)
    context.progress.start_phase("train", total=len(train.labels))
    fit = HeadFit(
        spec=setup.spec,
        config=setup.config,
        device=torch.device("cpu"),
        stop_reason=context.stop.reason,
        on_images=context.add_images,
        on_step=context.add_step,
    )
    setup.model.head.load_state_dict(fit.fit(train.values, train.labels, seed=setup.spec.seed).state_dict())


def train_model(setup: TrainingSetup) -> TrainState:
    """Train the model, or resume its training, and return the last state.

    The model then has the weights of the best epoch, or of the last one where nothing was validated.
    """
    spec = setup.spec
    module = setup.model.head if spec.freeze == "all" else setup.model
    scaler = None if spec.freeze == "all" else grad_scaler(setup.device, setup.config.precision)
    with Checkpointer(setup.context, module, setup.optimizer(), ModelEma(module, spec.ema), scaler) as checkpointer:
        state = checkpointer.resume()
        for epochs, frozen in phases(spec):
            if state.epoch >= min(epochs.stop, spec.last_epoch):
                continue
            state = _train_phase(setup, checkpointer, state, epochs, frozen=frozen)
        if state.best_epoch:
            checkpointer.load_best(state)
        else:
            checkpointer.ema.copy_to_source()
    return state


def _train_phase(
    setup: TrainingSetup, checkpointer: Checkpointer, state: TrainState, epochs: range, *, frozen: bool
) -> TrainState:
    """Train the epochs of a phase and return the last state; its features and graphs leave the GPU with its loop."""
    loop = _build_loop(setup, checkpointer, epochs, frozen=frozen)
    with one_thread(isinstance(loop.loader, FeatureLoader)), _ended(loop.loader):
        while not loop.is_over(state):
            state = loop.train_epoch(state)
    return state


def phases(spec: TrainSpec) -> list[tuple[range, bool]]:
    """Return the epochs (from 0) of each phase, and whether the whole backbone is frozen in it."""
    if spec.freeze == "all":
        return [(range(spec.epochs), True)]
    head, rest = range(spec.head_epochs), range(spec.head_epochs, spec.epochs)
    return [(head, True), (rest, False)] if head else [(rest, False)]


@dataclass(frozen=True, kw_only=True)
class TrainHooks(LoopHooks):
    """Connects the loop of a training to its checkpoints, progress, validation split and stop request.

    Attributes:
        evaluated: The module that is validated: the EMA of the one that trains.
        batch_size: Images per validation batch on each rank.
    """

    setup: TrainingSetup
    checkpointer: Checkpointer
    loader: BatchLoader
    evaluated: nn.Module
    precision: str
    batch_size: int

    def on_epoch_start(self, state: TrainState) -> None:
        """Start counting the images of all epochs."""
        spec = self.setup.spec
        self.setup.context.progress.start_phase(
            "train",
            total=self.setup.index.samples_in(spec.split) * spec.last_epoch,
            done=state.images,
            epoch=state.epoch + 1,
            epochs=spec.last_epoch,
        )

    def on_step_end(self, images: int) -> None:
        """Count the images."""
        self.setup.context.add_images(images)

    def stop_reason(self) -> str | None:
        """Return the reason in `stop.json`."""
        return self.setup.context.stop.reason()

    def checkpoint_is_due(self) -> bool:
        """Return whether the last checkpoint is too old."""
        return self.checkpointer.save_is_due()

    def validate(self) -> dict[str, Any]:
        """Score the validation split, unless the module trains on it (a refit)."""
        setup = self.setup
        if setup.spec.split != "train":
            return {}
        found = model_outputs(
            self.evaluated,
            self.loader,
            setup.index,
            "valid",
            setup.context.process_group,
            precision=self.precision,
            at_once=self.batch_size,
        )
        metrics = epoch_metrics(found)
        self.checkpointer.validated = found, metrics
        return metrics

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Append to `metrics.jsonl`."""
        self.checkpointer.log_epoch(metrics)

    def save_checkpoint(self, state: TrainState, is_best: bool) -> None:
        """Save a checkpoint, and the best model."""
        self.checkpointer.save(state, is_best)

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is written."""
        self.checkpointer.wait()


def _build_loop(setup: TrainingSetup, checkpointer: Checkpointer, epochs: range, *, frozen: bool) -> TrainLoop:
    spec, process_group = setup.spec, setup.context.process_group
    loader = _build_loader(setup, epochs, frozen=frozen)
    module, evaluated = (_head_if(frozen, whole) for whole in (checkpointer.module, checkpointer.ema.module))
    precision = "fp32" if frozen else setup.config.precision  # a head alone computes in float32
    if not frozen:
        warn_of_small_batches(spec, process_group)
    batch_size = BATCH if isinstance(loader, FeatureLoader) else _images_at_once(setup)
    return TrainLoop(
        spec=spec,
        index=setup.index,
        process_group=process_group,
        module=module,
        optimizer=checkpointer.optimizer,
        loader=loader,
        class_weights=class_weights(spec, setup.index, process_group.device),
        hooks=TrainHooks(
            setup=setup,
            checkpointer=checkpointer,
            loader=loader,
            evaluated=evaluated,
            precision=precision,
            batch_size=batch_size,
        ),
        ema=checkpointer.ema,
        precision=precision,
        scaler=checkpointer.checkpoint.scaler if precision == "fp16" else None,
        epochs=epochs,
        micro_batches=1 if frozen else _micro_batches(setup, module, precision=precision),
        preemption=PreemptionWatcher(ray.train.get_preemption_info) if process_group.is_whole else PreemptionWatcher(),
    )


def _images_at_once(setup: TrainingSetup) -> int:
    """Return the images of a validation batch: those of a step, whose batches wait in the same shared memory."""
    return math.ceil(setup.spec.batch_size / setup.context.process_group.world_size)


def _ended(loader: BatchLoader) -> AbstractContextManager[object]:
    """Return a context at whose end the processes of a loader end."""
    return closing(loader) if isinstance(loader, ImageLoader) else nullcontext()


def _head_if(frozen: bool, module: nn.Module) -> nn.Module:
    """Return only the head of a classifier when the whole backbone is frozen."""
    return module.head if frozen and isinstance(module, Classifier) else module


def _micro_batches(setup: TrainingSetup, module: nn.Module, *, precision: str) -> int:
    """Return the micro-batches per step of the whole network; a CPU has enough memory for one."""
    spec, process_group = setup.spec, setup.context.process_group
    if process_group.device.type != "cuda":
        return 1
    fits = partial(fits_in_memory, module, image_size=spec.image_size, device=process_group.device, precision=precision)
    plan = epoch_plan(spec, setup.index, process_group, epoch=0)
    smallest = plan.samples // plan.batches // process_group.world_size
    return choose_micro_batches(spec, process_group, fits, largest=plan.largest_batch, smallest=smallest)


def _build_loader(setup: TrainingSetup, epochs: range, *, frozen: bool) -> BatchLoader:
    """Return a loader for the epochs of a phase: of features where the whole backbone is frozen, else of images."""
    spec, config, process_group = setup.spec, setup.config, setup.context.process_group
    if frozen and spec.cache and not spec.augment:
        return _feature_loader(setup)
    normalise = partial(normalised, config=config)
    augment = Augmentation(spec.augment_strength) if spec.augment else None
    if frozen:
        forward = FoldedBackbone(setup.model.backbone, config.precision, process_group.device)

    def prepare(images: Tensor, training: bool) -> Tensor:
        augmented = augment(images) if augment and training else images
        return forward.on_device(augmented, normalise) if frozen else normalise(augmented)

    return ImageLoader(
        location=spec.shards,
        index=setup.index,
        image_size=spec.image_size,
        loader_workers=setup.context.loader_workers,
        prefetch_bytes=setup.context.prefetch_bytes,
        device=process_group.device,
        prepare=prepare,
        following=partial(_plans_after, setup, range(min(epochs.stop, spec.last_epoch))),
    )


def _plans_after(setup: TrainingSetup, epochs: range, plan: EpochPlan) -> list[EpochPlan]:
    """Return what a training loads after a plan of one of its epochs: the valid split after each, and all later ones.

    It loads nothing more where early stopping ends it, and after a validation that follows no epoch.
    """
    if not plan.shuffle:
        return []
    spec, group = setup.spec, setup.context.process_group
    trained = [epoch_plan(spec, setup.index, group, epoch) for epoch in epochs[plan.epoch + 1 :]]
    if spec.split != "train":  # a refit, which is not validated
        return trained
    valid = evaluation_plan(setup.index, "valid", group, at_once=_images_at_once(setup))
    return [valid, *(after for train in trained for after in (train, valid))]


def _feature_loader(setup: TrainingSetup) -> FeatureLoader:
    """Extract the features of the splits, or read them from the cache, and load them onto the device."""
    spec = setup.spec
    splits = ("train", "valid") if spec.split == "train" else (spec.split,)
    setup.context.progress.start_phase("features", total=sum(setup.index.samples_in(split) for split in splits))
    setup.extractor.extract(*splits)
    return FeatureLoader.of(setup.extractor, splits, setup.device)
