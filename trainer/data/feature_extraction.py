"""Extracts the features of a frozen backbone. Each rank takes its shards; each shard is computed once for all runs."""

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from data_shards.index import Shard, ShardIndex
from data_shards.read.loader_processes import processes_for
from data_shards.read.stream import Batch, read_shards
from trainer.data.cache_folder import MARK_SECONDS
from trainer.data.device_batches import DeviceBatches
from trainer.data.feature_cache import FeatureCache, Features
from trainer.data.split_features import SplitFeatures
from trainer.data.transforms import normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import CheckpointError, FeaturesMissing, Stopped
from trainer.model.efficientnet import Backbone
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig
from trainer.result import FeatureCounts

READ_BATCH = 64  # images decoded at once: few, so that all loader processes get as many, and the first come soon
COMPUTED_GPU = 256  # images computed at once, which fill the GPU; a CPU splits what was decoded

logger = logging.getLogger(__name__)


@dataclass
class FeatureExtractor:
    """The features of the splits of one data set under one backbone.

    Attributes:
        cache: Where features are kept between runs; None keeps them in this process only.
        prefetch_bytes: Limit of the batches of images in shared memory; None is no limit.
        extracts: Whether to compute the features of several missing shards of a split.
        counts: Of the images over all ranks, by where their features came from.
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
    prefetch_bytes: int | None = None
    extracts: bool = True
    counts: FeatureCounts = field(default_factory=FeatureCounts)
    on_images: Callable[[int], None] = lambda _: None
    stop_reason: Callable[[], str | None] = lambda: None
    _loaded: dict[str, Features] = field(default_factory=dict)  # by the sha256 of the shard
    _splits: dict[str, SplitFeatures] = field(default_factory=dict)
    _marked_at: float = field(default_factory=time.monotonic)

    def extract(self, *splits: str) -> None:
        """Compute the missing features of splits, their shards divided among the ranks; every rank must call this.

        One call for several splits starts the loader processes once.

        Raises:
            Stopped: The run was asked to stop; the features of finished shards are cached.
            FeaturesMissing: Several shards lack their features, and this extractor is not to compute them.
        """
        if not self.extracts:
            for split in splits:
                self._refuse_several(split)
        group = self.process_group
        own = [shard for split in splits for shard in self.index.of_split(split)[group.rank :: group.world_size]]
        unread = [shard for shard in own if shard.sha256 not in self._loaded]
        missing = [shard for shard in own if not self._load_cached(shard)]
        self._count(_samples(own) - _samples(missing))
        reason = self.stop_reason() or self._compute_until_stopped(missing)
        computed = _samples(missing)
        stops, *images = group.all_reduce_sum(float(reason is not None), _samples(unread) - computed, computed)
        self.counts.add(*map(int, images))
        if stops:
            raise Stopped("stopped while computing features; those of finished shards are kept")

    def _refuse_several(self, split: str) -> None:
        missing = [shard for shard in self.index.of_split(split) if not self._has(shard)]
        if len(missing) > 1:
            raise FeaturesMissing(f"the features of {len(missing)} shards of the split {split!r} are not in the cache")

    def _has(self, shard: Shard) -> bool:
        return shard.sha256 in self._loaded or (self.cache is not None and self.cache.has(shard.sha256))

    def features_of(self, split: str) -> SplitFeatures:
        """Return the features of a whole split; call `extract` first.

        Those that the cache holds are read from its files when they are used; the others are in memory. Where no cache
        brings what other ranks have computed, this rank computes it: call it on every rank before a collective, so that
        none waits longer than the others take.
        """
        if split not in self._splits:
            shards = self.index.of_split(split)
            for _ in self._compute([shard for shard in shards if not self._load_cached(shard)]):
                pass
            self._splits[split] = SplitFeatures(
                shards=tuple(self._loaded[shard.sha256] for shard in shards),
                column_names=tuple(column.name for column in self.index.columns),
                on_read=self.mark_if_due,
            )
        return self._splits[split]

    def mark_if_due(self) -> None:
        """Mark the files of all features as used, every ten minutes.

        After hours of training they would else be the first to be evicted, and the published model is scored on them.
        """
        if self.cache is not None and time.monotonic() - self._marked_at >= MARK_SECONDS:
            self._marked_at = time.monotonic()
            self.cache.mark_used(self._loaded)

    def _load_cached(self, shard: Shard) -> bool:
        """Return whether the features of a shard are in memory, after a look into the cache."""
        if shard.sha256 not in self._loaded and (found := self._read_cache(shard)) is not None:
            self._loaded[shard.sha256] = found
        return shard.sha256 in self._loaded

    def _compute_until_stopped(self, shards: Sequence[Shard]) -> str | None:
        """Compute the features of shards and return why it stopped before the end; None if it did not."""
        with closing(self._compute(shards)) as finished:
            for shard in finished:
                self._count(shard.samples)
                if reason := self.stop_reason():
                    return reason
        return None

    @cached_property
    def _forward(self) -> FoldedBackbone:
        """The backbone, prepared only when features are missing."""
        return FoldedBackbone(self.backbone, self.config.precision, self.process_group.device, two_sizes=True)

    @cached_property
    def _on_device(self) -> DeviceBatches:
        """What copies images to the device, in batches of the size that it computes best."""
        device = self.process_group.device
        return DeviceBatches(device, COMPUTED_GPU if device.type == "cuda" else READ_BATCH)

    def _read_cache(self, shard: Shard) -> Features | None:
        if self.cache is None:
            return None
        try:
            return self.cache.read(shard.sha256)
        except CheckpointError as error:
            logger.warning("%s; computing it again", error)
            return None

    def _compute(self, shards: Sequence[Shard]) -> Generator[Shard, None, None]:
        """Compute the features of shards, and yield each shard when its images are read.

        A thread waits for the features and stores them, while this one hands over the images of the next shard; all are
        stored when the generator ends.
        """
        if not shards:
            return  # no loader, whose processes would start for nothing
        batches = read_shards(
            self.location,
            shards,
            self.index,
            image_size=self.config.image_size,
            batch_size=READ_BATCH,
            loader_workers=processes_for(_samples(shards), most=self.loader_workers),
            prefetch_bytes=self.prefetch_bytes,
            pin_memory=self.process_group.device.type == "cuda",
        )
        stored: Future[None] | None = None
        with closing(batches), ThreadPoolExecutor(1, "stores features") as thread:
            try:
                for shard, of_shard in itertools.groupby(batches, key=lambda pair: pair[0]):
                    features = self._features(batch for _, batch in of_shard)
                    if stored is not None:
                        stored.result()  # so that at most two shards are in memory
                    stored = thread.submit(self._store, shard, features)
                    yield shard
            finally:
                if stored is not None:
                    stored.result()

    def _store(self, shard: Shard, features: Features) -> None:
        """Write features into the cache and keep them: as their file, or in memory where that is not possible."""
        features = replace(features, values=features.values.cpu())
        if self.cache is not None:
            features = self.cache.as_stored(features)  # so that they are the same if they cannot be written
        self._loaded[shard.sha256] = features
        if self._write_cache(shard, features):
            self._loaded[shard.sha256] = self._read_cache(shard) or features

    def _features(self, batches: Iterable[Batch]) -> Features:
        """Return the features of one shard's batches; a GPU may still compute their values, which are on the device."""
        labels: list[Tensor] = []
        sources: list[str] = []
        groups: list[str] = []
        columns: dict[str, list[str]] = {column.name: [] for column in self.index.columns}

        def images() -> Iterator[Tensor]:
            for batch in batches:
                labels.append(batch.labels)
                sources.extend(batch.sources)
                groups.extend(batch.groups)
                for name, of_shard in columns.items():
                    of_shard.extend(of_image.get(name, "") for of_image in batch.columns)
                yield batch.images

        normalise = partial(normalised, config=self.config)
        values = [self._forward.on_device(together, normalise) for together in self._on_device(images())]
        return Features.of(
            torch.cat(values),
            torch.cat(labels),
            sources=tuple(sources),
            groups=tuple(groups),
            columns={name: tuple(of_shard) for name, of_shard in columns.items()},
        )

    def _count(self, images: int) -> None:
        """Report images of this rank; the other ranks have done about as many."""
        self.on_images(images * self.process_group.world_size)

    def _write_cache(self, shard: Shard, features: Features) -> bool:
        """Return whether the features were written."""
        if self.cache is None:
            return False
        try:
            self.cache.write(shard.sha256, features)
        except OSError as error:
            logger.warning(
                "features of %s are not cached: %s; free space in %s, or raise NIGHTSHIFT_CACHE_GB",
                *(shard.name, error, self.cache.root),
            )
            return False
        return True


def _samples(shards: Iterable[Shard]) -> int:
    return sum(shard.samples for shard in shards)
