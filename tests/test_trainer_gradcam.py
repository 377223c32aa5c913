import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.transforms import normalised
from trainer.model.efficientnet import build_model
from trainer.model.head import HeadConfig
from trainer.report.examples import with_pictures, worst_misclassified
from trainer.report.gradcam import folded_backbone, heatmaps_of

SIDE = 96  # three by three places on the last feature maps
CONFIG = HeadConfig(classes=("dark", "bright"), width=8, dropout=0.0, image_size=SIDE)


@pytest.fixture(scope="module")
def model():
    """A network with random weights whose head sums the features."""
    torch.manual_seed(0)
    built = build_model(CONFIG).eval()
    built.head = torch.nn.Linear(1280, 2)
    with torch.no_grad():
        built.head.weight[0] = -1.0
        built.head.weight[1] = 1.0
    return built


def spot(row, column):
    """An image (1, S, S) that is black but for a bright noisy square at one of three by three places."""
    image = np.zeros((1, SIDE, SIDE), dtype=np.uint8)
    noise = np.random.default_rng(0).integers(100, 255, (32, 32))
    image[0, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = noise
    return image


def heatmaps(model, images, predicted):
    """The Grad-CAM heatmaps of images (B, 1, S, S) uint8."""
    maps = folded_backbone(model).feature_maps(images, partial(normalised, config=CONFIG))
    return heatmaps_of(model, maps, predicted, side=SIDE)


def test_a_heatmap_has_the_size_of_the_image_and_values_from_0_to_1(model):
    images = torch.from_numpy(np.stack([spot(0, 0), spot(2, 2)]))

    heatmap = heatmaps(model, images, torch.tensor([1, 1]))

    assert [one.shape for one in heatmap] == [(SIDE, SIDE)] * 2
    assert all(one.min() >= 0 for one in heatmap)
    assert all(one.max() == pytest.approx(1, abs=0.05) for one in heatmap)


def test_a_heatmap_is_the_gradient_of_the_predicted_class_times_the_feature_maps(model):
    image = torch.from_numpy(spot(1, 1))[None]
    maps = model.backbone.network.extract_features(_normalised(image)).detach()
    expected = (model.head.weight[1][:, None, None] * maps[0]).sum(0).relu()

    heatmap = heatmaps(model, image, torch.tensor([1]))[0]

    assert np.unravel_index(heatmap.argmax(), heatmap.shape) == pytest.approx(
        [32 * int(place) + 16 for place in np.unravel_index(int(expected.argmax()), expected.shape)], abs=20
    )


def test_the_heatmaps_of_two_opposite_classes_do_not_overlap(model):
    image = torch.from_numpy(spot(0, 2))[None]

    bright = heatmaps(model, image, torch.tensor([1]))[0]
    dark = heatmaps(model, image, torch.tensor([0]))[0]

    assert (bright > 0.5).any()
    assert not ((bright > 0.5) & (dark > 0.5)).any()


def test_grad_cam_does_not_change_the_model(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    heatmaps(model, torch.from_numpy(spot(0, 0))[None], torch.tensor([1]))

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_misclassified_image_gets_its_pixels_and_source_file(model):
    labels, predicted = np.array([0, 1, 1]), np.array([1, 1, 0])
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3]])
    found = worst_misclassified(np.array([10, 11, 12]), labels, predicted, probabilities, positive=0)

    pictured = with_pictures(found, {10: ("a.png", spot(0, 0)), 12: ("b.png", spot(1, 1))}, model, CONFIG)

    assert [(one.id, one.kind, one.source) for one in pictured] == [
        (10, "false_negative", "a.png"),
        (12, "false_positive", "b.png"),
    ]
    assert all(one.image[:2] == one.heatmap[:2] == b"\xff\xd8" for one in pictured)
    assert all(one.image != one.heatmap for one in pictured)


def test_the_heatmaps_of_a_batch_are_those_of_each_image_alone(model):
    images, classes = torch.from_numpy(np.stack([spot(0, 0), spot(1, 2), spot(2, 2)])), torch.tensor([1, 0, 1])

    together = heatmaps(model, images, classes)

    for place, heatmap in enumerate(together):
        alone = heatmaps(model, images[place : place + 1], classes[place : place + 1])[0]
        assert heatmap == pytest.approx(alone, abs=1e-4)


def test_examples_have_the_pictures_that_each_has_alone_though_an_image_goes_through_the_network_once(
    model, monkeypatch
):
    labels, predicted = np.array([0, 1, 1]), np.array([1, 0, 1])
    probabilities = np.array([[0.1, 0.9], [0.7, 0.3], [0.2, 0.8]])
    found = worst_misclassified(np.array([10, 11, 12]), labels, predicted, probabilities, positive=1)
    images = {10: ("a.png", spot(0, 0)), 11: ("b.png", spot(1, 1))}
    alone = [with_pictures((one,), images, model, CONFIG)[0] for one in found]
    sizes, extract = [], model.backbone.network.extract_features
    monkeypatch.setattr(
        model.backbone.network, "extract_features", lambda inputs: sizes.append(len(inputs)) or extract(inputs)
    )

    together = with_pictures(found, images, model, CONFIG)

    assert sizes == [2]
    for one, other in zip(together, alone, strict=True):
        assert (one.id, one.image, one.source) == (other.id, other.image, other.source)
        for name in ("heatmap", "evidence"):
            assert pixels_of(getattr(one, name)) == pytest.approx(pixels_of(getattr(other, name)), abs=3)


def pixels_of(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def test_only_the_most_confident_errors_of_each_kind_are_kept():
    scores = np.linspace(0.01, 0.49, 40)
    probabilities = np.stack([scores, 1 - scores], axis=1)

    found = worst_misclassified(np.arange(40), np.zeros(40, int), np.ones(40, int), probabilities, positive=0, limit=5)

    assert [one.id for one in found] == [0, 1, 2, 3, 4]


def _normalised(images):
    mean = torch.tensor(CONFIG.mean).view(1, 3, 1, 1) * 255
    std = torch.tensor(CONFIG.std).view(1, 3, 1, 1) * 255
    return (images.float() - mean) / std
