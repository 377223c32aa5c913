from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainer.errors import SpecError, Stopped, TrainerError
from trainer.training import feature_chunks, logistic_regression
from trainer.training.feature_chunks import FeatureChunks
from trainer.training.linear_heads import LinearTask, fit_linear_head

NAMES = ("a", "b", "c", "d")


def task_of(labels, *, classes, weights=None, seed=0):
    random = np.random.default_rng(seed)
    shifts = random.normal(size=(classes, 30)) * 0.5
    shown = labels if labels.ndim == 1 else np.maximum(labels[:, 0], 0)
    features = shifts[shown] + random.normal(size=(len(labels), 30)) * np.linspace(0.1, 5, 30) + 3
    return LinearTask(features=torch.from_numpy(features), labels=labels, classes=NAMES[:classes], weights=weights)


def logits(head, features):
    return head(features.float()).double().numpy()


@pytest.fixture(params=["in memory", "by chunks"])
def _size(request, monkeypatch):
    """Fit as with few images, and as with more than fit into memory: on chunks that are smaller than a class."""
    if request.param == "by chunks":
        monkeypatch.setattr(feature_chunks, "ROWS_AT_ONCE", 7)
        monkeypatch.setattr(logistic_regression, "MOST_IN_MEMORY", 0)


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_lda_gives_the_probabilities_of_scikit_learns_shrinkage_lda(classes, weighted):
    labels = np.random.default_rng(1).choice(
        classes, 90, p=np.array([0.55, 0.45, 0, 0] if classes == 2 else [0.4] + [0.2] * 3)[:classes]
    )
    weights = len(labels) / classes / np.bincount(labels) if weighted else None
    task = task_of(labels, classes=classes, weights=weights)

    found = softmax(logits(fit_linear_head("lda", task), task.features), axis=1)

    priors = [1 / classes] * classes if weighted else None
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors).fit(
        task.features.numpy(), labels
    )
    assert found == pytest.approx(expected.predict_proba(task.features.numpy()), abs=1e-4)


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_logistic_head_gives_the_probabilities_of_scikit_learns_logistic_regression(classes, weighted):
    labels = np.random.default_rng(2).choice(classes, 90)
    weights = len(labels) / classes / np.bincount(labels) if weighted else None
    task = task_of(labels, classes=classes, weights=weights)

    found = softmax(logits(fit_linear_head("logistic", task), task.features), axis=1)

    model = LogisticRegression(max_iter=1000, class_weight="balanced" if weighted else None)
    expected = make_pipeline(StandardScaler(), model).fit(task.features.numpy(), labels)
    assert found == pytest.approx(expected.predict_proba(task.features.numpy()), abs=1e-4)


def test_a_logistic_head_of_several_labels_is_fitted_on_the_images_where_each_label_is_known():
    targets = np.random.default_rng(3).choice([0, 1, -1], (80, 3), p=[0.4, 0.4, 0.2])
    targets[:, 2] = np.where(targets[:, 2] < 0, -1, 1)  # no image is known to lack it
    task = task_of(targets, classes=3, weights=np.ones((2, 3)))

    found = expit(logits(fit_linear_head("logistic", task), task.features))

    scaled = StandardScaler().fit_transform(task.features.numpy())
    for label in (0, 1):
        known = targets[:, label] >= 0
        expected = LogisticRegression(max_iter=1000).fit(scaled[known], targets[known, label]).predict_proba(scaled)
        assert found[:, label] == pytest.approx(expected[:, 1], abs=1e-4)
    present = (targets[:, 2] == 1).sum()
    assert found[:, 2] == pytest.approx(np.full(80, (present + 0.5) / (present + 1)), abs=1e-6)


@pytest.mark.usefixtures("_size")
def test_labels_that_all_images_have_or_none_have_a_constant_head():
    task = task_of(np.tile([1, 0], (40, 1)), classes=2)

    found = expit(logits(fit_linear_head("logistic", task), task.features))

    assert found == pytest.approx(np.tile([40.5 / 41, 0.5 / 41], (40, 1)), abs=1e-6)


def test_lda_of_several_labels_is_refused_with_the_cure():
    with pytest.raises(SpecError, match=r"--head lda needs one class per image, .* use --head logistic"):
        fit_linear_head("lda", task_of(np.zeros((9, 2), dtype=int), classes=2))


@pytest.mark.parametrize("head", ["lda", "logistic"])
def test_a_class_without_training_images_is_named(head):
    with pytest.raises(SpecError, match="there is no image of b to train on"):
        fit_linear_head(head, task_of(np.array([0, 2] * 8), classes=3))


def test_images_that_all_have_the_same_features_are_refused():
    task = LinearTask(features=torch.ones(8, 5), labels=np.array([0, 1] * 4), classes=("a", "b"), weights=None)

    with pytest.raises(TrainerError, match="the images of each class have the same features"):
        fit_linear_head("lda", task)


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("head", ["lda", "logistic"])
def test_a_fit_reports_its_steps_and_ends_with_what_the_report_raises(head):
    steps, task = [], task_of(np.array([0, 1, 2] * 20), classes=3)
    fit_linear_head(head, replace(task, on_step=lambda: steps.append(len(steps))))

    def stop():
        raise Stopped("asked")

    with pytest.raises(Stopped, match="asked"):
        fit_linear_head(head, replace(task, on_step=stop))
    assert len(steps) >= 5


def test_a_class_of_one_image_does_not_stop_lda():
    task = task_of(np.array([0, 1] * 20 + [2]), classes=3)

    found = logits(fit_linear_head("lda", task), task.features)

    assert np.isfinite(found).all()
    assert found[-1].argmax() == 2


class Watched:
    """Features that record how many rows are read at once."""

    def __init__(self, features):
        self.features, self.most = features, 0

    def __len__(self):
        return len(self.features)

    def __getitem__(self, rows):
        found = self.features[rows]
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("head", ["lda", "logistic"])
def test_a_linear_head_of_many_images_never_has_more_than_a_chunk_of_the_features(head, monkeypatch):
    task = task_of(np.random.default_rng(4).choice(3, 500), classes=3)
    watched = Watched(task.features)
    monkeypatch.setattr(feature_chunks, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(logistic_regression, "MOST_IN_MEMORY", 499)
    monkeypatch.delattr(FeatureChunks, "whole")  # what takes all rows at once

    fit_linear_head(head, replace(task, features=watched))

    assert watched.most == 7


def test_weighted_labels_have_the_same_head_in_memory_and_by_chunks(monkeypatch):
    """At a tight tolerance: with the usual one, both are some thousandths from the least loss."""
    targets = np.random.default_rng(5).choice([0, 1, -1], (300, 4), p=[0.6, 0.2, 0.2])
    targets[:, 3] = np.where(targets[:, 3] < 0, -1, 1)
    task = task_of(targets, classes=4, weights=np.array([[0.5, 1, 2, 3], [4, 1, 0.5, 2]]))

    with monkeypatch.context() as in_memory:
        in_memory.setattr(logistic_regression, "LogisticRegression", partial(LogisticRegression, tol=1e-9))
        expected = expit(logits(fit_linear_head("logistic", task), task.features))
    monkeypatch.setattr(logistic_regression, "MOST_IN_MEMORY", 0)
    monkeypatch.setattr(logistic_regression, "LBFGS", {**logistic_regression.LBFGS, "gtol": 1e-9})
    found = expit(logits(fit_linear_head("logistic", task), task.features))

    assert found == pytest.approx(expected, abs=1e-5)


def test_a_regression_by_chunks_says_that_it_did_not_converge(monkeypatch, caplog):
    monkeypatch.setattr(logistic_regression, "MOST_IN_MEMORY", 0)
    monkeypatch.setattr(logistic_regression, "MOST_ITERATIONS", 2)
    monkeypatch.setattr(logistic_regression, "LBFGS", {**logistic_regression.LBFGS, "maxiter": 2})

    fit_linear_head("logistic", task_of(np.array([0, 1, 2] * 20), classes=3))

    assert "the logistic regression did not converge in 2 iterations" in caplog.text
