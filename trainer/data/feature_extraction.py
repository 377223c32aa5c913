"""Computes the features of a frozen backbone: each rank its shards, each shard once for all runs."""

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
from trainer.errors import CheckpointError, Stopped
from trainer.model.efficientnet import Backbone
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig

READ_BATCH = 64  # images decoded at once; the forward cuts them smaller on a CPU

logger = logging.getLogger(__name__)


@dataclass
class FeatureExtractor:
    """The features of any split of one data set under one backbone.

    Attributes:
        cache: Where features are kept between runs; None keeps them in this process only.
        count: Told of images done, over all ranks.
        stop_reason: Why the run shall stop, or None.
    """

    location: str
    index: ShardIndex
    config: HeadConfig
    backbone: Backbone
    process_group: ProcessGroup
    cache: FeatureCache | None
    loader_workers: int = 0
    count: Callable[[int], None] = lambda _: None
    stop_reason: Callable[[], str | None] = lambda: None
    _mine: dict[str, Features] = field(default_factory=dict)

    def prepare(self, split: str) -> None:
        """Compute what is missing of a split, shared out over the ranks; every rank must call it.

        Raises:
            Stopped: The run was asked to stop; what was finished is kept.
        """
        reason = None
        for shard in self.index.of_split(split)[self.process_group.rank :: self.process_group.world_size]:
            if reason := self.stop_reason():
                break
            self.of_shard(shard)
            self.count(shard.samples * self.process_group.world_size)
        if any(self.process_group.all_reduce_sum(float(reason is not None))):
            raise Stopped("stopped while computing features; those of finished shards are kept")

    def of_split(self, split: str) -> Features:
        """Return the features of a whole split in the order of sample ids; call `prepare` first."""
        parts = [self.of_shard(shard) for shard in self.index.of_split(split)]
        return Features(
            values=torch.cat([part.values for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            sources=tuple(name for part in parts for name in part.sources),
            groups=tuple(name for part in parts for name in part.groups),
        )

    def of_shard(self, shard: Shard) -> Features:
        """Return a shard's features: from this process, the cache, or the network."""
        if shard.sha256 not in self._mine:
            self._mine[shard.sha256] = self._stored(shard) or self._computed(shard)
        return self._mine[shard.sha256]

    @cached_property
    def forward(self) -> FoldedBackbone:
        """The network, made ready only when something is missing."""
        return FoldedBackbone(self.backbone, self.config.precision, self.process_group.device)

    def _stored(self, shard: Shard) -> Features | None:
        if self.cache is None:
            return None
        try:
            return self.cache.read(shard.sha256)
        except CheckpointError as error:
            logger.warning("%s; computing it again", error)
            return None

    def _computed(self, shard: Shard) -> Features:
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
            values.append(self.forward(batch.images, partial(normalised, config=self.config)))
            labels.append(batch.labels)
            sources += batch.sources
            groups += batch.groups
        found = Features(
            values=torch.cat(values), labels=torch.cat(labels), sources=tuple(sources), groups=tuple(groups)
        )
        self._keep(shard, found)
        return found

    def _keep(self, shard: Shard, features: Features) -> None:
        if self.cache is None:
            return
        try:
            self.cache.write(shard.sha256, features)
        except OSError as error:
            logger.warning("features of %s are not kept: %s; free space in %s", shard.name, error, self.cache.root)
