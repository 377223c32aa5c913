"""What a training starts from: model, optimizer, class weights, and the extractor of its features."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from data_shards.index import ShardIndex
from data_shards.pack.options import EncodeOptions
from trainer.data.cache_folder import cache_folder
from trainer.data.feature_cache import FeatureCache, FeatureKey
from trainer.data.feature_extraction import FeatureExtractor
from trainer.data.run_data import run_index
from trainer.distributed.worker import WorkerContext
from trainer.evaluation.objective import objective_of
from trainer.model.efficientnet import Classifier, build_model
from trainer.model.head import HeadConfig
from trainer.model.weights import backbone_sha256, load_backbone, read_weights
from trainer.specs import TrainSpec
from trainer.training.optimizer import build_optimizer
from trainer.training.run_precision import run_precision

PRETRAINED_LR_FACTOR = 0.1  # of the head's learning rate: pretrained weights need smaller steps than a new head


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """A model on its data, on one worker.

    Attributes:
        index: The data set.
        model: On the worker's device.
        config: The model's description; its `backbone_sha256` is that of the initial backbone.
    """

    context: WorkerContext[TrainSpec]
    index: ShardIndex
    model: Classifier
    config: HeadConfig

    @classmethod
    def fresh(cls, context: WorkerContext[TrainSpec]) -> "TrainingSetup":
        """Return the setup before the first step, the same on every rank.

        Raises:
            ShardError: The data set cannot be read.
            WeightsError: The weights are missing, damaged or do not fit.
        """
        index = run_index(context.task.attempt.lease, context.spec.shards)
        model, config = build_fresh_model(context, index)
        return cls(context=context, index=index, model=model, config=config)

    @property
    def spec(self) -> TrainSpec:
        """What was requested."""
        return self.context.spec

    @property
    def device(self) -> torch.device:
        """The worker's device."""
        return self.context.process_group.device

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The one extractor of this data set's features under this model's backbone; it keeps what it has loaded."""
        return extractor_for(
            self.context, self.spec.shards, self.index, self.model, self.config, cached=self.spec.cache
        )

    def optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer over everything that trains in any phase."""
        return build_optimizer(
            self.model.head,
            self.model.backbone,
            backbone_factor=PRETRAINED_LR_FACTOR if self.context.task.source else 1.0,
            weight_decay=self.spec.weight_decay,
            device=self.device,
        )


def build_fresh_model(context: WorkerContext[TrainSpec], index: ShardIndex) -> tuple[Classifier, HeadConfig]:
    """Return the model before its first step, the same on every rank, and its description."""
    spec = context.spec
    weights = read_weights(context.task.source) if context.task.source else None
    config = HeadConfig(
        classes=index.classes,
        width=spec.head_width,
        dropout=spec.dropout,
        image_size=spec.image_size,
        layout=weights.layout if weights else "efficientnet_pytorch",
        precision=run_precision(context),
        pack=EncodeOptions.of_index(index.options),
        color=index.color,
        multi_label=index.multi_label,
        head=spec.head,
        positive=spec.positive,
    )
    torch.manual_seed(spec.seed)
    model = build_model(config)
    if weights:
        load_backbone(model.backbone, weights)
    keep = keeps_statistics(spec, pretrained=weights is not None)
    model.backbone.freeze(spec.freeze, freeze_bn_statistics=keep)
    if context.process_group.world_size > 1 and context.process_group.device.type == "cuda":
        model.backbone.convert_sync_batchnorm()
    config = config.model_copy(update={"backbone_sha256": backbone_sha256(model.backbone)})
    return model.to(context.process_group.device), config


def keeps_statistics(spec: TrainSpec, *, pretrained: bool) -> bool:
    """Return whether the backbone's batch norm uses its running statistics in training, as in evaluation.

    The statistics of a small batch are noisy compared with those of ImageNet, and a head that was trained on features
    under the running statistics would see different features. Random weights have no statistics worth keeping.
    """
    return pretrained if spec.norms == "auto" else spec.norms == "kept"


def extractor_for(
    context: WorkerContext[Any],
    location: str,
    index: ShardIndex,
    model: Classifier,
    config: HeadConfig,
    *,
    cached: bool,
) -> FeatureExtractor:
    """Return the extractor of a data set's features under a model's backbone."""
    settings = context.task.attempt.settings
    key = FeatureKey.of(config, settings.cache_precision)
    cache = FeatureCache(cache_folder(settings.storage), key, settings.cache_bytes)
    return FeatureExtractor(
        location=location,
        index=index,
        config=config,
        backbone=model.backbone,
        process_group=context.process_group,
        cache=cache if cached else None,
        extracts=context.task.extracts,
        counts=context.progress.features,
        loader_workers=context.loader_workers,
        prefetch_bytes=context.prefetch_bytes,
        on_images=context.add_images,
        stop_reason=context.stop.reason,
    )


def class_weights(
    spec: TrainSpec, index: ShardIndex, device: torch.device, *, split: str | None = None
) -> Tensor | None:
    """Return the weights of the loss on a split, as `Objective.losses` takes them; None for equal weights.

    The default is the split that the spec trains on.
    """
    weights = objective_of(index.multi_label).loss_weights(index, split or spec.split, spec.class_weights)
    return None if weights is None else torch.tensor(weights, device=device)
