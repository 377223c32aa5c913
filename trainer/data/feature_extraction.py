"""Extracts the features of a frozen backbone. Each rank takes its shards; each shard is computed once for all runs."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from data_shards.index import Shard, ShardIndex
from data_shards.read.stream import read_shard
from trainer.data.feature_cache import FeatureCache, Features
from trainer.data.transforms import normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import CheckpointError, FeaturesMissing, Stopped
from trainer.model.efficientnet import Backbone
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig

READ_BATCH = 64  # images decoded at once; on a CPU the backbone splits them further

logger = logging.getLogger(__name__)


@dataclass
class FeatureExtractor:
    """The features of the splits of one data set under one backbone.

    Attributes:
        cache: Where features are kept between runs; None keeps them in this process only.
        extracts: Whether to compute the features of several missing shards of a split.
        on_images: Called with the number of images that were processed, over all ranks.
        stop_reason: Returns why the run should stop, or None.
    """

    location: str
    index: ShardIndex
    config: HeadConfig
    backbone: Backbone
    process_group: ProcessGroup
    cache: FeatureCache | None
    loader_workers: int = 0
    extracts: bool = True
    on_images: Callable[[int], None] = lambda _: None
    stop_reason: Callable[[], str | None] = lambda: None
    _loaded: dict[str, Features] = field(default_factory=dict)

    def extract(self, split: str) -> None:
        """Compute the missing features of a split, its shards divided among the ranks; every rank must call this.

        Raises:
            Stopped: The run was asked to stop; the features of finished shards are cached.
            FeaturesMissing: Several shards lack their features, and this extractor is not to compute them.
        """
        if not self.extracts:
            self._refuse_several(split)
        reason = None
        for shard in self.index.of_split(split)[self.process_group.rank :: self.process_group.world_size]:
            if reason := self.stop_reason():
                break
            self._features_of_shard(shard)
            self.on_images(shard.samples * self.process_group.world_size)
        if any(self.process_group.all_reduce_sum(float(reason is not None))):
            raise Stopped("stopped while computing features; those of finished shards are kept")

    def _refuse_several(self, split: str) -> None:
        missing = [shard for shard in self.index.of_split(split) if not self._has(shard)]
        if len(missing) > 1:
            raise FeaturesMissing(f"the features of {len(missing)} shards of the split {split!r} are not in the cache")

    def _has(self, shard: Shard) -> bool:
        return shard.sha256 in self._loaded or (self.cache is not None and self.cache.has(shard.sha256))

    def features_of(self, split: str) -> Features:
        """Return the features of a whole split in the order of sample ids; call `extract` first."""
        shards = [self._features_of_shard(shard) for shard in self.index.of_split(split)]
        return Features(
            values=torch.cat([features.values for features in shards]),
            labels=torch.cat([features.labels for features in shards]),
            sources=tuple(name for features in shards for name in features.sources),
            groups=tuple(name for features in shards for name in features.groups),
        )

    def _features_of_shard(self, shard: Shard) -> Features:
        if shard.sha256 not in self._loaded:
            self._loaded[shard.sha256] = self._read_cache(shard) or self._compute(shard)
        return self._loaded[shard.sha256]

    @cached_property
    def _forward(self) -> FoldedBackbone:
        """The backbone, prepared only when features are missing."""
        return FoldedBackbone(self.backbone, self.config.precision, self.process_group.device)

    def _read_cache(self, shard: Shard) -> Features | None:
        if self.cache is None:
            return None
        try:
            return self.cache.read(shard.sha256)
        except CheckpointError as error:
            logger.warning("%s; computing it again", error)
            return None

    def _compute(self, shard: Shard) -> Features:
        values: list[Tensor] = []
        labels: list[Tensor] = []
        sources: list[str] = []
        groups: list[str] = []
        for batch in read_shard(
            self.location,
            shard,
            self.index,
            image_size=self.config.image_size,
            batch_size=READ_BATCH,
            loader_workers=self.loader_workers,
        ):
            values.append(self._forward(batch.images, partial(normalised, config=self.config)))
            labels.append(batch.labels)
            sources += batch.sources
            groups += batch.groups
        features = Features(
            values=torch.cat(values), labels=torch.cat(labels), sources=tuple(sources), groups=tuple(groups)
        )
        self._write_cache(shard, features)
        return features

    def _write_cache(self, shard: Shard, features: Features) -> None:
        if self.cache is None:
            return
        try:
            self.cache.write(shard.sha256, features)
        except OSError as error:
            logger.warning("features of %s are not cached: %s; free space in %s", shard.name, error, self.cache.root)
