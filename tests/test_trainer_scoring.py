import numpy as np
import pytest
import torch
from torch import nn

from tests.datasets import index_of
from trainer.data.batches import DeviceBatch
from trainer.distributed.process_group import ProcessGroup
from trainer.evaluation import scoring
from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.scoring import ModelOutputs, epoch_metrics, model_outputs


def test_the_metrics_of_an_epoch_equal_those_of_the_evaluation():
    draw = np.random.default_rng(0)
    for classes in (2, 5):
        found = ModelOutputs(logits=draw.normal(size=(60, classes)), labels=draw.integers(0, classes, 60))
        names = tuple("abcde"[:classes])
        whole = classification_metrics(
            found.probabilities(), found.labels, classes=names, positive=None, intervals=False
        )

        metrics = epoch_metrics(found)

        assert metrics == pytest.approx({name: whole[name] for name in metrics}, rel=1e-12)


def test_a_split_of_one_class_leaves_the_auroc_undefined():
    metrics = epoch_metrics(ModelOutputs(logits=np.zeros((4, 2)), labels=np.ones(4, dtype=np.int64)))

    assert metrics["auroc"] is None
    assert metrics["accuracy"] == 0.0


class OneRankOf(ProcessGroup):
    """A rank that computes its rows alone."""

    def gather_rows(self, rows):
        return rows


@pytest.mark.parametrize("ranks", [1, 3])
def test_all_batches_of_images_on_a_gpu_have_one_size_and_the_outputs_are_the_same(monkeypatch, ranks):
    torch.manual_seed(0)
    images, sizes = torch.rand(23, 3, 8, 8), []
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    module(images)
    module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))

    def source(plan):
        for number in range(plan.batches):
            ids = torch.from_numpy(plan.ids(number))
            yield DeviceBatch(images[ids], ids % 2, ids, len(ids))

    def outputs():
        group = OneRankOf(ranks - 1, ranks, torch.device("cpu"))
        return model_outputs(module, source, index_of((10, 13), "valid"), "valid", group, at_once=5)

    expected, own_sizes = outputs(), list(sizes)
    sizes.clear()
    monkeypatch.setattr(scoring, "FILLED", ("cpu",))
    found = outputs()

    assert len({*own_sizes}) == 2
    assert sizes == [5] * len(own_sizes)
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6)
