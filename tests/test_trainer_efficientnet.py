from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trained import train_spec
from trainer.data.transforms import Augmentation, normalised
from trainer.model.efficientnet import Backbone, build_model
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig
from trainer.model.weights import backbone_sha256
from trainer.training.model_setup import keeps_statistics

CONFIG = HeadConfig(classes=("a", "b", "c"), width=32, dropout=0.4, image_size=64)
CPU = torch.device("cpu")


@pytest.fixture
def backbone():
    """A backbone whose running statistics are not the initial ones, like a trained one's."""
    torch.manual_seed(0)
    found = Backbone(64)
    with torch.no_grad():
        for _ in range(3):
            found(torch.randn(8, 3, 64, 64))
    return found.eval()


def test_a_frozen_backbone_does_not_change_when_the_model_trains(backbone):
    backbone.freeze("all")
    before = backbone_sha256(backbone)

    backbone.train()
    first, second = backbone(torch.ones(4, 3, 64, 64)), backbone(torch.ones(4, 3, 64, 64))

    assert backbone_sha256(backbone) == before
    assert torch.equal(first, second)  # no drop connect
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_freezing_three_stages_leaves_later_blocks_trainable(backbone):
    backbone.freeze("3").train()

    blocks = [any(p.requires_grad for p in block.parameters()) for block in backbone.network._blocks]

    assert blocks == [False] * 5 + [True] * 11  # stages of 1, 2 and 2 blocks, Tan & Le 2019
    assert not backbone.network._conv_stem.weight.requires_grad
    assert [block.training for block in backbone.network._blocks] == blocks


def test_frozen_statistics_do_not_change_but_scales_and_shifts_get_gradients(backbone):
    backbone.freeze("3", freeze_bn_statistics=True).train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}

    backbone(torch.randn(4, 3, 64, 64)).sum().backward()

    assert all(value.equal(before[name]) for name, value in backbone.named_buffers())
    last = backbone.network._bn1
    assert float(last.weight.grad.abs().sum()) > 0
    assert float(last.bias.grad.abs().sum()) > 0
    assert backbone.network._blocks[15].training  # applies drop connect


def test_statistics_of_trainable_blocks_are_updated_unless_frozen(backbone):
    backbone.freeze("3").train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}

    with torch.no_grad():
        backbone(torch.randn(4, 3, 64, 64))

    moved = {name.split(".")[2] for name, value in backbone.named_buffers() if not value.equal(before[name])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"} | {str(block) for block in range(5, 16)}


@pytest.mark.parametrize(
    ("norms", "pretrained", "kept"),
    [("auto", True, True), ("auto", False, False), ("kept", False, True), ("batch", True, False)],
)
def test_statistics_are_frozen_for_pretrained_weights_by_default(norms, pretrained, kept):
    spec = train_spec(Path("digits"), norms=norms)

    assert keeps_statistics(spec, pretrained=pretrained) is kept


def test_trainable_batch_norms_become_sync_batch_norms_with_the_same_names(backbone):
    names, parameters = list(backbone.state_dict()), list(backbone.parameters())
    backbone.freeze("3")

    backbone.convert_sync_batchnorm()

    network = backbone.network
    assert isinstance(network._bn1, nn.SyncBatchNorm)
    assert not isinstance(network._bn0, nn.SyncBatchNorm)
    assert [isinstance(block._bn1, nn.SyncBatchNorm) for block in network._blocks] == [False] * 5 + [True] * 11
    assert list(backbone.state_dict()) == names
    assert all(one is other for one, other in zip(backbone.parameters(), parameters, strict=True))
    assert (network._bn1.eps, network._bn1.momentum) == (network._bn0.eps, network._bn0.momentum)


def test_batch_norms_with_frozen_statistics_are_not_converted(backbone):
    backbone.freeze("none", freeze_bn_statistics=True)

    backbone.convert_sync_batchnorm()

    assert not any(isinstance(module, nn.SyncBatchNorm) for module in backbone.modules())


def test_the_head_computes_in_float32_under_autocast():
    model = build_model(CONFIG).eval()

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.rand(2, 3, 64, 64))

    assert logits.dtype == torch.float32
    assert logits.shape == (2, 3)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.03)])
@pytest.mark.parametrize("layout", ["efficientnet_pytorch", "torchvision"])
def test_the_folded_backbone_computes_the_features_of_the_backbone(precision, tolerance, layout):
    torch.manual_seed(0)
    backbone = Backbone(64, layout)
    images = torch.randint(0, 256, (11, 1, 64, 64), dtype=torch.uint8)
    normalise = partial(normalised, config=CONFIG)
    with torch.no_grad():
        backbone(normalise(images))
        expected = backbone.eval()(normalise(images))

    found = FoldedBackbone(backbone, precision, CPU)(images, normalise)

    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < tolerance


def test_several_threads_compute_bit_identical_features(backbone):
    images = torch.randint(0, 256, (35, 1, 64, 64), dtype=torch.uint8)
    normalise = partial(normalised, config=CONFIG)
    fast = FoldedBackbone(backbone, "fp32", CPU)
    before = torch.get_num_threads()
    found = {}

    for threads in (1, 3):
        torch.set_num_threads(threads)
        found[threads] = fast(images, normalise)
        assert torch.get_num_threads() == threads

    torch.set_num_threads(before)
    assert torch.equal(found[3], found[1])


def test_gray_images_are_normalised_as_three_equal_channels():
    gray = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)

    found = normalised(gray, CONFIG)

    expected = (gray.expand(-1, 3, -1, -1) / 255 - torch.tensor(CONFIG.mean).view(3, 1, 1)) / torch.tensor(
        CONFIG.std
    ).view(3, 1, 1)
    assert found.shape == (2, 3, 64, 64)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_stronger_augmentation_changes_more_and_strength_zero_only_flips():
    images = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)

    def change(strength):
        torch.manual_seed(3)
        varied = Augmentation(strength)(images)
        flipped = torch.stack([image.flip(-1) for image in images])
        unlike = (varied.float() - images.float()).abs().mean((1, 2, 3))
        return torch.minimum(unlike, (varied.float() - flipped.float()).abs().mean((1, 2, 3))).mean()

    none, mild, strong = change(0.0), change(1.0), change(4.0)

    assert none == 0
    assert 0 < mild < strong


def test_augmentation_is_random_per_image_and_keeps_shape_and_dtype():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8).expand(4, 1, 64, 64)

    varied = Augmentation()(images)

    assert varied.shape == images.shape
    assert varied.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in varied}) == 4
