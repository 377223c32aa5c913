"""The trainer's own training loop on images that are already in memory; an epoch is a single step."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from data_shards.index import Shard, ShardIndex
from data_shards.plan import EpochPlan
from tests.bench.data import WEIGHTS
from trainer.data.batches import DeviceBatch
from trainer.data.transforms import normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import Classifier, build_model
from trainer.model.head import HeadConfig
from trainer.model.weights import load_backbone, read_weights
from trainer.specs import TrainSpec, build
from trainer.training.loop import EpochMetrics, LoopHooks, TrainLoop
from trainer.training.optimizer import build_optimizer, lr_factor
from trainer.training.train_state import TrainState

STEPS = 10_000  # planned steps: so many that the learning rate is nearly constant in the measured steps
LR = 1e-3
FIRST_LR = LR * lr_factor(0, STEPS)
BACKBONE_FACTOR = 0.1  # times the head's learning rate, the default for pretrained weights
CONFIG = HeadConfig(classes=("a", "b"), width=512, dropout=0.0, image_size=224)
METRICS = {"loss": 0.0, "accuracy": 0.0, "auroc": 0.0, "balanced_accuracy": 0.0}


def batch_of(images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random images in the loop's format, `(images, 3, 224, 224) float32` channels last, and their labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 224, 224), dtype=torch.uint8, generator=generator)
    return normalised(pixels.to(device), CONFIG), (torch.arange(images) % 2).to(device)


def pretrained(device: torch.device) -> Classifier:
    """Return the pretrained model with all layers trainable."""
    model = fresh(device)
    load_backbone(model.backbone, read_weights(WEIGHTS))
    return model


def fresh(device: torch.device) -> Classifier:
    """Return a model with random weights and all layers trainable."""
    torch.manual_seed(0)
    model = build_model(CONFIG)
    model.backbone.freeze("none")
    return model.to(device)


@dataclass
class Stepper(LoopHooks):
    """Runs the trainer's training steps, one per call.

    Attributes:
        images, labels: This rank's part of each step.
        losses: Mean loss of each step so far.
    """

    model: Classifier
    process_group: ProcessGroup
    images: Tensor
    labels: Tensor
    bf16: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        optimizer = build_optimizer(
            self.model.head, self.model.backbone, backbone_factor=BACKBONE_FACTOR, weight_decay=0.0,
            device=self.process_group.device,
        )  # fmt: skip
        self.state = TrainState()
        self.loop = TrainLoop(
            spec=build(TrainSpec, shards="memory", epochs=STEPS, batch_size=self._all_images, lr=LR, freeze="none"),
            index=_index_of(self._all_images),
            process_group=self.process_group,
            module=self.model,
            optimizer=optimizer,
            loader=self._load,
            class_weights=None,
            hooks=self,
            precision="bf16" if self.bf16 else "fp32",
        )

    def step(self) -> None:
        """Run one training step."""
        self.state = self.loop.train_epoch(self.state)

    @property
    def _all_images(self) -> int:
        return len(self.images) * self.process_group.world_size

    def _load(self, plan: EpochPlan, start: int = 0) -> Iterator[DeviceBatch]:
        yield DeviceBatch(self.images, self.labels, torch.arange(len(self.images)), self._all_images)

    def validate(self) -> dict[str, Any]:
        """Return constant metrics: only the steps are measured."""
        return METRICS

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Record the loss of the step, which is one epoch."""
        self.losses.append(metrics.train_loss)


def _index_of(images: int) -> ShardIndex:
    half = images // 2
    shard = Shard(
        name="train-0.tar", split="train", samples=images, per_class=(images - half, half), bytes=1, sha256="0" * 64
    )
    return ShardIndex(classes=CONFIG.classes, shards=(shard,))
