import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cluster.files import read_json
from cluster.resources import cpu_count
from data_shards.index import read_index
from tests.datasets import packed
from tests.multi_label import pack_multi_label
from tests.trained import attempted, done, evaluated, new_run, train_spec
from trainer.data.feature_cache import FeatureCache, FeatureKey
from trainer.distributed.worker import WorkerContext
from trainer.errors import SpecError, Stopped
from trainer.evaluation.out_of_fold import OutOfFold
from trainer.evaluation.scoring import epoch_metrics
from trainer.evaluation.training_text import FIGURES, training_lines
from trainer.model.bundle import read_model
from trainer.report.head_comparison import head_comparison
from trainer.training import cross_validation, fold_heads, head_fit
from trainer.training.batched_heads import HeadBatch
from trainer.training.head_fit import HeadFit

LINEAR = {"epochs": 30, "head_width": 512, "patience": 10}  # the defaults, which a linear head does not use
MLP_FOLDS = {"folds": 2, "patience": 10, "seed": 3, "batch_size": 30}  # so both heads take the same number of steps
LOGITS_APART = 0.05  # features of random weights hardly vary; on features that do, heads differ by 1e-6
ONE_AT_A_TIME = {"head_width": 512}  # on a CPU


@pytest.fixture(scope="module")
def cross_validated(tmp_path_factory, digits_shards):
    storage = tmp_path_factory.mktemp("storage")
    return done(storage, train_spec(digits_shards, head="logistic", folds=3, repeats=2, seed=5, **LINEAR))


@pytest.fixture(scope="module")
def mlp_folds(tmp_path_factory, digits_shards):
    return done(tmp_path_factory.mktemp("storage"), train_spec(digits_shards, **MLP_FOLDS))


@pytest.fixture(scope="module")
def wide_folds(tmp_path_factory, digits_shards):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation, "process_count", lambda _: 2)
        return done(tmp_path_factory.mktemp("storage"), train_spec(digits_shards, **(MLP_FOLDS | ONE_AT_A_TIME)))


def published_bytes(paths):
    return [(paths.best / name).read_bytes() for name in ("model.safetensors", "out_of_fold.safetensors")]


def features_of(paths, shards):
    """Return the cached features, labels and groups of train and valid."""
    _, config, _ = read_model(paths.best)
    cache = FeatureCache(paths.storage / "features", FeatureKey.of(config), 10**9)
    found = [cache.read(shard.sha256) for shard in read_index(str(shards)).of_split("train+valid")]
    values, labels = (torch.cat([getattr(one, name) for one in found]).numpy() for name in ("values", "labels"))
    return values.astype(np.float64), labels, [group for one in found for group in one.groups]


def regression():
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def test_predictions_out_of_fold_equal_a_loop_over_the_same_features_in_scikit_learn(cross_validated, digits_shards):
    paths, result = cross_validated
    values, labels, _ = features_of(paths, digits_shards)
    _, config, _ = read_model(paths.best)
    shown = result.details["cross_validation"]["shown_repeat"]

    found = OutOfFold.read(paths.best, config)

    expected = np.empty((len(labels), 10))
    splitter = StratifiedGroupKFold(3, shuffle=True, random_state=5 + shown - 1)
    for fold, (fit, scored) in enumerate(splitter.split(values, labels, np.arange(len(labels)))):
        assert set(found.folds[scored]) == {fold}
        expected[scored] = regression().fit(values[fit], labels[fit]).predict_proba(values[scored])
    assert found.outputs.probabilities() == pytest.approx(expected, abs=1e-3)
    assert result.metrics["accuracy"] == (expected.argmax(axis=1) == labels).mean()
    assert result.metrics["n"] == len(labels)


def test_the_published_head_is_trained_on_train_and_valid_together(cross_validated, digits_shards):
    paths, _ = cross_validated
    values, labels, _ = features_of(paths, digits_shards)

    model, _, manifest = read_model(paths.best)

    with torch.no_grad():
        found = softmax(model.head(torch.from_numpy(values).float()).double().numpy(), axis=1)
    assert found == pytest.approx(regression().fit(values, labels).predict_proba(values), abs=1e-3)
    assert manifest["refit"]["images"] == len(labels)


def test_the_result_says_that_the_figures_are_out_of_fold_and_how_much_they_differ_between_repeats(cross_validated):
    paths, _ = cross_validated

    result = read_json(paths.result)

    assert result["metrics"]["split"] == "train+valid"
    assert result["metrics"]["out_of_fold"] == {"folds": 3, "repeats": 2}
    assert len(result["cross_validation"]["by_repeat"]) == 2
    assert [row["head"] for row in result["baselines"]] == ["lda"]
    lines = dict(training_lines(result))
    assert lines["metrics"] == "out of fold, 3 folds x 2 repeats, train+valid"
    assert lines["repeats"].endswith("over 2 repeats")
    assert lines["baseline"].startswith("linear discriminant analysis (lda) on the same features: accuracy 0.")
    report = paths.report.read_text()
    assert "out of fold, 3 folds x 2 repeats, train+valid" in report
    assert "each image is scored by a head that was trained without its fold" in report


def test_a_threshold_is_chosen_on_the_predictions_out_of_fold(cross_validated, digits_shards, tmp_path):
    paths, _ = cross_validated
    _, config, _ = read_model(paths.best)
    stored = OutOfFold.read(paths.best, config).outputs

    found = evaluated(tmp_path, paths.best, digits_shards, positive="3", min_sensitivity=0.9)

    choice = found.metrics["threshold_choices"][0]
    assert choice["chosen_on"] == "out of fold"
    assert choice["positives"] == (stored.labels == 3).sum()
    assert choice["sensitivity"] >= 0.9
    scores = softmax(stored.logits / choice["temperature"], axis=1)[:, 3]
    assert (scores[stored.labels == 3] >= choice["threshold"]).mean() == choice["sensitivity"]
    assert found.details["seen"]["trained"] == 0


def test_an_evaluation_of_the_valid_split_says_that_the_model_was_trained_on_it(
    cross_validated, digits_shards, tmp_path
):
    paths, _ = cross_validated

    found = evaluated(tmp_path, paths.best, digits_shards, split="valid", positive="3", min_sensitivity=0.9)

    assert found.details["seen"]["trained"] == found.metrics["n"]
    report = (tmp_path / "runs" / "evaluation" / "report.html").read_text()
    assert "The threshold was chosen on the predictions out of fold" in report
    assert "The threshold was chosen on this split" not in report


@pytest.mark.usefixtures("without_reports")
def test_a_cross_validation_that_is_stopped_goes_on_with_the_finished_folds(wide_folds, digits_shards, monkeypatch):
    uninterrupted, expected = wide_folds
    spec = train_spec(digits_shards, **(MLP_FOLDS | ONE_AT_A_TIME))
    paths = new_run(uninterrupted.storage, spec, "stopped")
    fit, fitted = HeadFit.fit, []

    def stopped_in_the_second(self, features, labels, *, seed):
        fitted.append(seed)
        if len(fitted) == 2:
            paths.stop.write_text(json.dumps({"reason": "cancel", "attempt": 1}))
        return fit(self, features, labels, seed=seed)

    monkeypatch.setattr(HeadFit, "fit", stopped_in_the_second)
    monkeypatch.setattr(cross_validation, "process_count", lambda _: 1)

    with pytest.raises(Stopped, match="the predictions of the finished folds are kept"):
        attempted(paths, spec)
    result = attempted(paths, spec)

    assert fitted[:4] == [3, 4, 4, 3]  # the first fold is trained once; then the second, and the published head
    assert result.metrics == expected.metrics
    assert published_bytes(paths) == published_bytes(uninterrupted)


@pytest.mark.usefixtures("without_reports")
def test_a_stop_reaches_the_processes_in_which_folds_train(wide_folds, digits_shards, monkeypatch):
    uninterrupted, expected = wide_folds
    spec = train_spec(digits_shards, **(MLP_FOLDS | ONE_AT_A_TIME))
    paths = new_run(uninterrupted.storage, spec, "stopped-processes")
    add_images = WorkerContext.add_images

    def stopped_at_once(self, images):
        add_images(self, images)
        if self.progress.phase == "train":
            paths.stop.write_text(json.dumps({"reason": "cancel", "attempt": 1}))

    monkeypatch.setattr(WorkerContext, "add_images", stopped_at_once)
    monkeypatch.setattr(cross_validation, "process_count", lambda _: 2)

    with pytest.raises(Stopped, match="the predictions of the finished folds are kept"):
        attempted(paths, spec)
    result = attempted(paths, spec)

    assert result.metrics == expected.metrics
    assert published_bytes(paths) == published_bytes(uninterrupted)


@pytest.mark.usefixtures("without_reports")
def test_heads_that_train_at_once_are_trained_again_after_a_stop_with_the_same_result(
    mlp_folds, digits_shards, monkeypatch
):
    uninterrupted, expected = mlp_folds
    spec = train_spec(digits_shards, **MLP_FOLDS)
    paths = new_run(uninterrupted.storage, spec, "stopped-at-once")
    train, batches = HeadBatch.train, []

    def stopped_in_the_first(self):
        batches.append([head.seed for head in self.heads])
        if len(batches) == 1:
            paths.stop.write_text(json.dumps({"reason": "cancel", "attempt": 1}))
        return train(self)

    monkeypatch.setattr(HeadBatch, "train", stopped_in_the_first)

    with pytest.raises(Stopped, match="the predictions of the finished folds are kept"):
        attempted(paths, spec)
    result = attempted(paths, spec)

    assert batches == [[3, 4], [3, 4]]
    assert result.metrics == expected.metrics
    assert published_bytes(paths) == published_bytes(uninterrupted)


@pytest.mark.usefixtures("without_reports")
def test_folds_whose_heads_train_at_once_have_the_predictions_of_heads_that_train_one_by_one(
    mlp_folds, digits_shards, monkeypatch
):
    uninterrupted, _ = mlp_folds
    spec = train_spec(digits_shards, **MLP_FOLDS)
    monkeypatch.setattr(fold_heads, "heads_at_once", lambda *_: 1)

    paths, _ = done(uninterrupted.storage, spec, "one-by-one")

    _, config, _ = read_model(paths.best)
    one_by_one, at_once = (OutOfFold.read(run.best, config) for run in (paths, uninterrupted))
    assert one_by_one.outputs.logits == pytest.approx(at_once.outputs.logits, abs=LOGITS_APART)
    assert (paths.best / "model.safetensors").read_bytes() == (uninterrupted.best / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("asked_in_fit", "is_published"), [(1, False), (2, True)], ids=["head", "baseline"])
def test_a_training_is_stopped_while_a_linear_head_is_fitted(
    tmp_path, digits_shards, monkeypatch, asked_in_fit, is_published
):
    spec = train_spec(digits_shards, head="lda", **LINEAR)
    paths = new_run(tmp_path, spec)
    fit, fits = head_fit.fit_linear_head, []

    def asked_to_stop(kind, task):
        fits.append(kind)
        if len(fits) == asked_in_fit:
            paths.stop.write_text(json.dumps({"reason": "cancel", "attempt": 1}))
        return fit(kind, task)

    monkeypatch.setattr(head_fit, "fit_linear_head", asked_to_stop)

    with pytest.raises(Stopped, match=r"stopped \(cancel\) while a linear head was fitted"):
        attempted(paths, spec)

    assert len(fits) == asked_in_fit
    assert paths.best.exists() == is_published


def test_folds_of_the_mlp_head_have_baselines_of_both_kinds_on_the_same_folds(mlp_folds):
    _, result = mlp_folds

    rows = head_comparison({"head": "mlp"}, result.metrics, result.details).rows

    assert [row["head"] for row in rows] == ["mlp", "lda", "logistic"]
    assert all(row["intervals"]["accuracy"][0] < row["accuracy"] <= row["intervals"]["accuracy"][1] for row in rows)
    assert "best_epoch" not in result.details


def test_the_published_head_is_compared_with_the_baselines_before_temperature_scaling(mlp_folds):
    paths, result = mlp_folds
    _, config, _ = read_model(paths.best)
    expected = epoch_metrics(OutOfFold.read(paths.best, config).outputs)

    row = head_comparison({"head": "mlp"}, result.metrics, result.details).rows[0]

    assert {name: row[name] for name in FIGURES} == {name: expected[name] for name in FIGURES}
    assert result.metrics["temperature"] != 1
    assert row["loss"] == pytest.approx(result.metrics["uncalibrated"]["loss"])


def test_a_result_of_an_earlier_version_is_compared_by_what_it_says_about_the_head_before_scaling(mlp_folds):
    _, result = mlp_folds
    metrics = {name: value for name, value in result.metrics.items() if name != "before_scaling"}

    row = head_comparison({"head": "mlp"}, metrics, result.details).rows[0]

    assert (row["auroc"], row["accuracy"]) == (None, metrics["accuracy"])
    assert row["loss"] == metrics["uncalibrated"]["loss"]
    assert row["intervals"] == {"accuracy": metrics["intervals"]["accuracy"]}


@pytest.mark.usefixtures("without_reports")
def test_a_data_set_without_a_valid_split_can_be_cross_validated(tmp_path):
    shards, _ = packed(tmp_path, {"train/covid": 8, "train/normal": 9, "test/covid": 2, "test/normal": 2})

    paths, result = done(tmp_path, train_spec(shards, head="lda", folds=2, class_weights=None, **LINEAR))
    found = evaluated(tmp_path, paths.best, shards, positive="covid", min_sensitivity=0.5)

    assert (result.metrics["split"], result.metrics["n"]) == ("train", 17)
    assert found.metrics["threshold_choices"][0]["positives"] == 8


@pytest.mark.usefixtures("without_reports")
def test_a_multi_label_model_is_cross_validated_with_a_regression_for_each_label(tmp_path):
    shards, index = pack_multi_label(tmp_path, {"train": 60, "valid": 24, "test": 12})

    paths, result = done(tmp_path, train_spec(shards, head="logistic", folds=2, **LINEAR))
    found = evaluated(tmp_path, paths.best, shards, positive="Effusion", min_sensitivity=0.8)

    assert result.metrics["n"] == 84
    assert result.metrics["auroc"] > 0.8
    assert found.metrics["threshold_choices"][0]["positives"] == index.targets_in("train+valid")[1].present


def test_a_multi_label_data_set_refuses_lda_before_anything_is_computed(tmp_path):
    shards, _ = pack_multi_label(tmp_path, {"train": 12, "valid": 6})

    with pytest.raises(SpecError, match=r"--head lda needs one class per image, .* use --head logistic"):
        done(tmp_path, train_spec(shards, head="lda", **LINEAR))


@pytest.mark.parametrize(("variable", "count"), [(None, cpu_count()), ("1", 1), ("3", 3)])
def test_folds_train_in_as_many_processes_as_threads_are_allowed(digits_shards, monkeypatch, variable, count):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    setup = SimpleNamespace(spec=train_spec(digits_shards, **MLP_FOLDS), device=torch.device("cpu"))

    assert cross_validation.process_count(setup) == count
