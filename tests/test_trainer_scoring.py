import numpy as np
import pytest

from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.scoring import ModelOutputs, epoch_metrics


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
