"""Features on a GPU: batches that are copied ahead, joined and filled give what one batch after another gives."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch

from data_shards.read.stream import read_shards
from tests.datasets import packed
from tests.gpu.marks import needs_gpus
from trainer.data import feature_extraction
from trainer.data.device_batches import DeviceBatches
from trainer.data.feature_cache import FeatureCache, FeatureKey
from trainer.data.feature_extraction import FeatureExtractor
from trainer.data.transforms import normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import Backbone
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig

pytestmark = needs_gpus(1)

GPU = torch.device("cuda")
SIZE = 224
READ, COMPUTED = 8, 32  # few images, so that 450 are many batches
SPLITS = ("train", "valid")
TOLERANCE = {"fp32": 0.005, "bf16": 0.03}  # of the length of a feature vector; TF32 and bf16 round by kernel


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    counts = {"train/a": 150, "train/b": 150, "valid/a": 75, "valid/b": 75}
    return packed(tmp_path_factory.mktemp("noise"), counts, shard_bytes=200_000, allow_leakage=True)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(SIZE, "standard").eval()


def one_after_another(data_set, split, backbone, config, *, fills):
    """Compute the features of a split without loader processes, pinned memory or a stream; wait for each batch."""
    folder, index = data_set
    forward = FoldedBackbone(backbone, config.precision, GPU)
    forward.fills = fills
    found = []
    for _, batch in read_shards(str(folder), index.of_split(split), index, image_size=SIZE, batch_size=COMPUTED):
        found.append(forward(batch.images, partial(normalised, config=config)))
        torch.cuda.synchronize()
    return torch.cat(found)


def largest_distance(found, expected):
    """Return the largest distance of two rows, relative to the length of the expected one."""
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@contextmanager
def without_tf32():
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("kind", [("fp32", None), ("bf16", None), ("bf16", "fp32"), ("bf16", "bf16")])
def test_the_features_of_an_extraction_are_those_of_one_batch_after_another(
    data_set, backbone, tmp_path, monkeypatch, kind
):
    (folder, index), (precision, stored) = data_set, kind
    config = HeadConfig(classes=index.classes, width=8, dropout=0.0, image_size=SIZE, precision=precision)
    monkeypatch.setattr(feature_extraction, "READ_BATCH", READ)
    monkeypatch.setattr(feature_extraction, "processes_for", lambda _, *, most: most)
    cache = None if stored is None else FeatureCache(tmp_path, FeatureKey.of(config, stored), 10**9)
    extractor = FeatureExtractor(
        str(folder), index, config, backbone, ProcessGroup(0, 1, GPU), cache=cache, loader_workers=3
    )
    extractor.__dict__["_on_device"] = DeviceBatches(GPU, COMPUTED)

    extractor.extract(*SPLITS)

    for split in SPLITS:
        found = extractor.features_of(split).values[:]
        expected = one_after_another(data_set, split, backbone, config, fills=True)
        assert largest_distance(found, expected) < TOLERANCE[precision]
        assert largest_distance(found, expected.roll(1, 0)) > TOLERANCE[precision]  # two images are told apart


def test_black_images_behind_a_batch_change_no_feature_of_it(data_set, backbone):
    config = HeadConfig(classes=data_set[1].classes, width=8, dropout=0.0, image_size=SIZE, precision="fp32")

    with without_tf32():
        filled = one_after_another(data_set, "train", backbone, config, fills=True)

        expected = one_after_another(data_set, "train", backbone, config, fills=False)

    assert largest_distance(filled, expected) < 1e-3
