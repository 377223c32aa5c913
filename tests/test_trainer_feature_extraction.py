"""The features of shards: which loader reads them, and that they are those of the images one by one."""

from functools import partial

import pytest
import torch

from data_shards.index import read_index
from data_shards.read.stream import read_samples
from trainer.data import feature_extraction
from trainer.data.device_batches import DeviceBatches
from trainer.data.feature_cache import FeatureCache, FeatureKey
from trainer.data.feature_extraction import FeatureExtractor
from trainer.data.transforms import normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import Backbone
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(32, "standard").eval()


@pytest.fixture
def extractor(digits_shards, backbone):
    """Return an extractor without a cache, with the given options."""
    index = read_index(str(digits_shards))
    config = HeadConfig(classes=index.classes, width=8, dropout=0.0, image_size=32)

    def new(cache=None, **options):
        return FeatureExtractor(
            str(digits_shards), index, config, backbone, ProcessGroup(0, 1, CPU), cache=cache, **options
        )

    return new


def test_one_loader_reads_the_shards_of_several_splits(extractor, monkeypatch):
    read, loaders = feature_extraction.read_shards, []

    def spied(location, shards, *arguments, **options):
        loaders.append([shard.name for shard in shards])
        return read(location, shards, *arguments, **options)

    monkeypatch.setattr(feature_extraction, "read_shards", spied)
    apart = extractor()
    for split in ("train", "valid"):
        apart.extract(split)
    loaders.clear()
    together = extractor()

    together.extract("train", "valid")

    assert loaders == [[shard.name for shard in together.index.of_split("train+valid")]]
    for split in ("train", "valid"):
        found, expected = together.features_of(split), apart.features_of(split)
        assert torch.equal(found.values[:], expected.values[:])
        assert torch.equal(found.labels, expected.labels)
        assert found.sources == expected.sources
    assert len(loaders) == 1  # features that are there need none
    assert together.counts.computed == sum(map(together.index.samples_in, ("train", "valid")))


def test_features_of_a_cache_in_bf16_are_the_same_when_computed_and_read_and_where_it_is_full(extractor, tmp_path):
    exact = extractor()
    key = FeatureKey.of(exact.config, "bf16")

    def values(folder, limit_bytes):
        found = extractor(cache=FeatureCache(tmp_path / folder, key, limit_bytes))
        found.extract("train")
        return found.features_of("train").values[:], found.counts

    computed, full, read = values("roomy", 10**9), values("full", 1), values("roomy", 10**9)

    exact.extract("train")
    expected = exact.features_of("train").values[:].bfloat16().float()
    assert [torch.equal(found, expected) for found, _ in (computed, full, read)] == [True, True, True]
    images = len(expected)
    assert [(counts.computed, counts.cached) for _, counts in (computed, full, read)] == [
        (images, 0),
        (images, 0),
        (0, images),
    ]


@pytest.mark.parametrize("at_once", [1, 64, 256])
def test_features_are_those_of_the_images_whatever_is_computed_at_once(extractor, at_once):
    found = extractor(loader_workers=2)
    found.__dict__["_on_device"] = DeviceBatches(CPU, at_once)

    found.extract("train")

    forward = FoldedBackbone(found.backbone, found.config.precision, CPU)
    ids = [0, 63, 64, found.index.samples_in("train") - 1]
    samples = list(read_samples(found.location, found.index, "train", ids, image_size=32))
    images = torch.cat([sample.images for sample in samples])
    expected = forward(images, partial(normalised, config=found.config))
    torch.testing.assert_close(found.features_of("train").values[torch.tensor(ids)], expected, rtol=1e-4, atol=1e-5)


def test_an_error_of_the_thread_that_stores_ends_an_extraction_that_is_stopped_too(extractor, monkeypatch):
    def full(*_):
        raise RuntimeError("the GPU has no memory left")

    monkeypatch.setattr(FeatureExtractor, "_store", full)
    stopped = extractor(stop_reason=iter((None, *["a test"] * 9)).__next__)

    with pytest.raises(RuntimeError, match="no memory left"):
        stopped.extract("train")
