"""The parts a worker starts from: model, features, class weights."""

import torch
from torch import Tensor

from data_shards.index import ShardIndex
from trainer.data.cache_folder import cache_folder
from trainer.data.feature_cache import FeatureCache, FeatureKey
from trainer.data.feature_extraction import FeatureExtractor
from trainer.distributed.worker import WorkerContext
from trainer.model.efficientnet import Classifier, build_model
from trainer.model.folded_backbone import resolve_precision
from trainer.model.head import HeadConfig
from trainer.model.weights import backbone_sha256, load_backbone, read_weights
from trainer.specs import TrainSpec

UNBALANCED = 2.0  # from this ratio of the largest class to the smallest on, classes are weighed


def build_fresh_model(context: WorkerContext, index: ShardIndex) -> tuple[Classifier, HeadConfig]:
    """Return the model before its first step, alike on all ranks, and its description."""
    spec: TrainSpec = context.task.spec
    weights = read_weights(context.task.source) if context.task.source else None
    config = HeadConfig(
        classes=index.classes,
        width=spec.head_width,
        dropout=spec.dropout,
        image_size=spec.image_size,
        layout=weights.layout if weights else "efficientnet_pytorch",
        precision=resolve_precision(spec.precision, context.process_group.device, trains=spec.freeze != "all"),
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
    """Return whether the backbone's batch norms normalise in training as they do afterwards.

    Statistics of a few images are noise beside those of ImageNet, and a head that has trained on the features of the
    one meets others. Random weights have none that are worth keeping.
    """
    return pretrained if spec.norms == "auto" else spec.norms == "kept"


def extractor_for(
    context: WorkerContext, location: str, index: ShardIndex, model: Classifier, config: HeadConfig, *, cached: bool
) -> FeatureExtractor:
    """Return the features of a data set under a model's backbone."""
    settings = context.task.attempt.settings
    cache = FeatureCache(cache_folder(settings.storage), FeatureKey.of(config), settings.cache_bytes)
    return FeatureExtractor(
        location=location,
        index=index,
        config=config,
        backbone=model.backbone,
        process_group=context.process_group,
        cache=cache if cached else None,
        loader_workers=context.loader_workers,
        count=context.count,
        stop_reason=context.stop.reason,
    )


def class_weights(spec: TrainSpec, index: ShardIndex, device: torch.device) -> Tensor | None:
    """Return n / (classes x n of the class), whose mean over the training images is 1."""
    counts = index.per_class_in(spec.split)
    wanted = spec.class_weights
    if wanted is None:
        wanted = max(counts) > UNBALANCED * min(counts)
    if not wanted:
        return None
    return torch.tensor([sum(counts) / (len(counts) * n) for n in counts], device=device)
