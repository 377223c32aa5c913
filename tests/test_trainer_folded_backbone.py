"""The frozen copy of a backbone computes an image alike whatever else is in its batch."""

from functools import partial

import pytest
import torch

from trainer.data.transforms import normalised
from trainer.model import folded_backbone
from trainer.model.efficientnet import Backbone
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig

CPU = torch.device("cpu")
SIZE = 32


@pytest.fixture(scope="module")
def normalise():
    return partial(normalised, config=HeadConfig(classes=("a", "b"), width=4, dropout=0.0, image_size=SIZE))


@pytest.fixture
def forward():
    torch.manual_seed(0)
    return FoldedBackbone(Backbone(SIZE, "standard").eval(), "fp32", CPU)


ON_A_GPU = {  # sizes of the batches that are computed, by the number of images
    False: {1: [16], 17: [32], 40: [32, 16], 50: [32, 32], 64: [32, 32]},
    True: {1: [4], 4: [4], 5: [32], 35: [32, 4], 64: [32, 32]},
}


@pytest.mark.parametrize(
    ("two_sizes", "images"), [(two, images) for two, found in ON_A_GPU.items() for images in found]
)
def test_batches_of_a_gpu_are_filled_up_to_few_sizes_and_give_the_same_features(
    forward, normalise, monkeypatch, two_sizes, images
):
    monkeypatch.setattr(folded_backbone, "FEW_GPU", 4)
    pixels = torch.randint(0, 256, (images, 1, SIZE, SIZE), dtype=torch.uint8)
    expected, maps = forward(pixels, normalise), forward.feature_maps(pixels, normalise)
    sizes = []
    extract = forward.network.extract_features
    forward.network.extract_features = lambda batch: sizes.append(len(batch)) or extract(batch)
    forward.fills, forward.micro_batch, forward.two_sizes = True, 32, two_sizes  # as on a GPU, but for the size

    found = forward(pixels, normalise)

    assert sizes == ON_A_GPU[two_sizes][images]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(forward.feature_maps(pixels, normalise), maps, rtol=1e-4, atol=1e-5)
