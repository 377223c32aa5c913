"""The few figures of an epoch beside those of the whole table."""

import numpy as np
import pytest

from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.scoring import ModelOutputs, epoch_metrics


def test_the_quick_figures_of_an_epoch_are_those_of_the_whole_table():
    draw = np.random.default_rng(0)
    for classes in (2, 5):
        found = ModelOutputs(logits=draw.normal(size=(60, classes)), labels=draw.integers(0, classes, 60))
        names = tuple("abcde"[:classes])
        whole = classification_metrics(
            found.probabilities(), found.labels, classes=names, positive=None, intervals=False
        )

        quick = epoch_metrics(found)

        assert quick == pytest.approx({name: whole[name] for name in quick}, rel=1e-12)


def test_a_split_of_one_class_leaves_the_auroc_undefined():
    quick = epoch_metrics(ModelOutputs(logits=np.zeros((4, 2)), labels=np.ones(4, dtype=np.int64)))

    assert quick["auroc"] is None
    assert quick["accuracy"] == 0.0
