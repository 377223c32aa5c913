"""Trains a head of any kind on rows of features, alone in this process: no other rank, no files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_shards.index import Shard, ShardIndex
from data_shards.targets import PRESENT, UNKNOWN
from trainer.data.batches import FeatureLoader
from trainer.data.split_features import FeatureRows, SplitFeatures
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import SpecError, Stopped
from trainer.evaluation.objective import objective_of
from trainer.evaluation.scoring import BATCH, ModelOutputs
from trainer.model.efficientnet import build_head
from trainer.model.head import HeadConfig
from trainer.specs import TrainSpec
from trainer.specs.train import MIN_BATCH_NORM_IMAGES, HeadKind
from trainer.training.ema import ModelEma
from trainer.training.linear_heads import LinearTask, fit_linear_head
from trainer.training.loop import LoopHooks, TrainLoop
from trainer.training.model_setup import class_weights
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import TrainState

LINEAR: tuple[HeadKind, ...] = ("lda", "logistic")
SPLIT = "train"  # of the index of the rows

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class HeadFit:
    """How to train heads; each call of `fit` trains one.

    Attributes:
        spec: The options of the training. All epochs are trained: there is no validation split to choose one on.
        config: Of the model.
        device: To train on.
        stop_reason: Returns why the training should stop, or None; called at each step.
        on_images: Called with the number of images of each step; of a linear head when it is fitted.
        on_step: Called between two steps of the fit of a linear head.
    """

    spec: TrainSpec
    config: HeadConfig
    device: torch.device
    stop_reason: Callable[[], str | None] = lambda: None
    on_images: Callable[[int], None] = lambda _: None
    on_step: Callable[[], None] = lambda: None

    @property
    def baseline_kinds(self) -> tuple[HeadKind, ...]:
        """The linear heads that are not this one; discriminant analysis needs one class per image."""
        multi_label = self.config.multi_label
        return tuple(kind for kind in LINEAR if kind != self.spec.head and not (multi_label and kind == "lda"))

    def of_kind(self, kind: HeadKind) -> "HeadFit":
        """Return how to fit a head of another kind on the same data; it does not count images."""
        return replace(
            self,
            spec=self.spec.model_copy(update={"head": kind}),
            config=self.config.model_copy(update={"head": kind}),
            on_images=lambda _: None,
        )

    def fit(self, features: FeatureRows, labels: Tensor, *, seed: int) -> nn.Module:
        """Return a head in eval mode, on the device.

        Args:
            features: `(N, 1280) float32`.
            labels: `(N,) int64` classes, or `(N, C) int64` targets.
            seed: Random seed of initial weights, order and dropout; a linear head has none.

        Raises:
            Stopped: The run was asked to stop.
            TrainingDiverged: The loss is not finite (NaN or inf).
            SpecError: A step would have a single image, or a class has no image.
        """
        index = index_of_rows(labels, self.config)
        if self.spec.head == "mlp":
            return self._train(features, labels, index, self.spec.model_copy(update={"seed": seed, "patience": None}))
        weights = class_weights(self.spec, index, torch.device("cpu"))
        task = LinearTask.of(features, labels, self.config.classes, weights, self._step_of_fit)
        head = fit_linear_head(self.spec.head, task)
        self.on_images(len(labels))
        return head.to(self.device)

    def _step_of_fit(self) -> None:
        if reason := self.stop_reason():
            raise Stopped(f"stopped ({reason}) while a linear head was fitted; the next attempt fits it again")
        self.on_step()

    def _train(self, features: FeatureRows, labels: Tensor, index: ShardIndex, spec: TrainSpec) -> nn.Module:
        check_steps(len(labels), spec.batch_size)
        torch.manual_seed(spec.seed)
        head = build_head(self.config).to(self.device)
        ema, values = ModelEma(head, spec.ema), features.to(self.device)
        loop = TrainLoop(
            spec=spec,
            index=index,
            process_group=ProcessGroup(0, 1, self.device),
            module=head,
            optimizer=build_optimizer(
                head, None, backbone_factor=1.0, weight_decay=spec.weight_decay, device=self.device
            ),
            loader=FeatureLoader({SPLIT: values}, {SPLIT: labels.to(values.device)}, self.device),
            class_weights=class_weights(spec, index, self.device),
            hooks=_Hooks(fit=self),
            ema=ema,
        )
        state = TrainState()
        with one_thread(True):
            while not loop.is_over(state):
                state = loop.train_epoch(state)
        ema.copy_to_source()
        return head.eval()


@dataclass(frozen=True, kw_only=True)
class _Hooks(LoopHooks):
    """Connects the loop to the stop request and the progress; nothing is validated or saved."""

    fit: HeadFit

    def on_step_end(self, images: int) -> None:
        self.fit.on_images(images)

    def stop_reason(self) -> str | None:
        return self.fit.stop_reason()


@torch.no_grad()
def head_logits(head: nn.Module, features: FeatureRows) -> Floats:
    """Return the logits `(n, C) float64` of a head in eval mode for features `(n, 1280)`."""
    device = next(head.parameters()).device
    parts = (features[start : start + BATCH] for start in range(0, len(features), BATCH))
    return torch.cat([head(part.to(device)).double().cpu() for part in parts]).numpy()


def head_outputs(fit: HeadFit, features: SplitFeatures, logits: Floats) -> ModelOutputs:
    """Return the outputs of a head for features with their labels, groups, sources and kept columns."""
    return ModelOutputs(
        logits=logits,
        labels=features.labels.numpy(),
        groups=features.groups,
        sources=features.sources,
        columns=features.columns,
        objective=objective_of(fit.config.multi_label),
    )


def index_of_rows(labels: Tensor, config: HeadConfig) -> ShardIndex:
    """Return the index of a data set that has these rows, as one shard of the split `train`; it has no files."""
    count = len(config.classes)
    if config.multi_label:
        per_class, unknown = ((labels == value).sum(dim=0).tolist() for value in (PRESENT, UNKNOWN))
    else:
        per_class, unknown = torch.bincount(labels, minlength=count).tolist(), []
    shard = Shard(
        name="rows.tar",
        split=SPLIT,
        samples=len(labels),
        per_class=tuple(per_class),
        unknown=tuple(unknown),
        bytes=1,
        sha256="0" * 64,
    )
    return ShardIndex(classes=config.classes, shards=(shard,), multi_label=config.multi_label)


def check_steps(images: int, batch_size: int) -> None:
    """Refuse steps of a single image.

    Raises:
        SpecError: They are.
    """
    if images // -(-images // batch_size) < MIN_BATCH_NORM_IMAGES:
        raise SpecError(
            f"{images} training images of a fold in steps of {batch_size} leave a step with 1 image, and batch norm "
            f"needs {MIN_BATCH_NORM_IMAGES}; use another --batch-size or more images"
        )


@contextmanager
def one_thread(enabled: bool) -> Iterator[None]:
    """Compute with one thread when `enabled`.

    The matrices of a head are too small for several: on an idle machine one thread is as fast as two. On a busy one
    the threads wait for each other: 147 ms a step instead of 11, measured on two cores under a load of 8.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if enabled else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
