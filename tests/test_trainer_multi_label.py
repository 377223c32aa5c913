"""A multi-label model from training to prediction, with a frozen backbone of random weights."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from cluster.files import read_json, read_lines
from cluster.settings import Settings
from jobs.queue.checks import checked
from jobs.runs.result_text import label_lines
from tests.datasets import packed
from tests.multi_label import LABELS, pack_multi_label
from tests.trained import QUICK, done, evaluated, new_run, train_spec
from trainer.attempt import Attempt
from trainer.distributed.worker import WorkerTask
from trainer.errors import ModelMismatch, SpecError
from trainer.evaluation.comparison import compare_predictions
from trainer.evaluation.named_thresholds import StoredModel, read_calibration
from trainer.evaluation.predictions import Predictions
from trainer.export import verify_export
from trainer.inference.export_formats import ExportedModel, Onnx, TorchScript, export_metadata
from trainer.inference.predictor import Predictor
from trainer.model.bundle import read_model
from trainer.model.head import FEATURES
from trainer.search.head_training import HeadTraining, HeadTrainingData
from trainer.specs import EvaluateSpec, ExportSpec, PredictSpec, SearchSpec, build
from trainer.training.head_fit import one_thread

pytestmark = pytest.mark.usefixtures("without_reports")

OPTIONS = {"epochs": 6, "lr": 5e-3, "seed": 3, "class_weights": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of 96, 40 and 40 images, and the folder of the images."""
    folder = tmp_path_factory.mktemp("data")
    return pack_multi_label(folder, {"train": 96, "valid": 40, "test": 40})[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A training with its report."""
    storage = tmp_path_factory.mktemp("storage")
    return done(storage, train_spec(data, **OPTIONS), "train-20260102-030405-abcdef")


@pytest.fixture(scope="module")
def storage(trained):
    return trained[0].storage


@pytest.fixture(scope="module")
def scored(storage, trained, data):
    """An evaluation with a threshold for one label."""
    return evaluated(storage, trained[0].best, data, "scored", positive="Effusion", min_sensitivity=0.9)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_training_publishes_a_model_of_sigmoids_with_a_temperature_for_each_label(trained):
    paths, result = trained

    head, calibration = read_json(paths.best / "head.json"), read_json(paths.best / "calibration.json")

    assert head["multi_label"] is True
    assert tuple(head["classes"]) == LABELS
    assert calibration["labels"].keys() == set(LABELS)
    assert result.metrics["labels"].keys() == set(LABELS)
    assert len(result.details["class_weights"]) == 2
    lines = list(read_lines(paths.metrics))
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    best = next(line for line in lines if line["epoch"] == result.details["best_epoch"])
    rows = result.metrics["labels"].values()
    losses = sum(row["n"] * row["uncalibrated"]["loss"] for row in rows) / sum(row["n"] for row in rows)
    assert best["valid_loss"] == pytest.approx(losses, abs=1e-6)
    for name in ("accuracy", "auroc", "balanced_accuracy"):  # a temperature changes none of them
        assert best[f"valid_{name}"] == pytest.approx(result.metrics[name], abs=1e-6)


def test_a_training_is_repeated_bit_for_bit_from_cached_and_from_streamed_features(storage, trained, data):
    paths, _ = trained

    again, _ = done(storage, train_spec(data, **OPTIONS), "again")
    streamed, _ = done(storage, train_spec(data, **OPTIONS, cache=False), "streamed")

    assert (again.best / "model.safetensors").read_bytes() == (paths.best / "model.safetensors").read_bytes()
    assert read_json(streamed.result)["metrics"]["loss"] == pytest.approx(
        read_json(paths.result)["metrics"]["loss"], rel=1e-3
    )


def test_the_table_of_an_evaluation_gives_the_figures_of_scikit_learn(storage, scored):
    rows = rows_of(storage / "runs" / "scored" / "predictions.csv")

    for name in LABELS:
        known = [row for row in rows if row[f"truth_{name}"]]
        truth = np.array([int(row[f"truth_{name}"]) for row in known])
        scores = np.array([float(row[f"probability_{name}"]) for row in known])
        decided = np.array([int(row[f"decision_{name}"]) for row in known])
        found = scored.metrics["labels"][name]
        assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-9)
        assert found["average_precision"] == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-9)
        assert found["sensitivity"] == sk.recall_score(truth, decided)
        assert found["specificity"] == sk.recall_score(truth, decided, pos_label=0)
        assert found["accuracy"] == sk.accuracy_score(truth, decided)
        assert found["unknown"] == len(rows) - len(known) > 0


def test_a_name_keeps_the_threshold_of_one_label_when_others_are_added(storage, trained, scored, data):
    file = trained[0].best / "thresholds" / "sensitivity-0.9.json"
    before = read_json(file)["classes"]

    added = evaluated(
        storage,
        trained[0].best,
        data,
        "added",
        positive="Nodule",
        min_sensitivity=0.8,
        threshold_name="sensitivity-0.9",
    )
    after = read_json(file)["classes"]
    file.write_text(json.dumps({**read_json(file), "classes": before}))

    assert before.keys() == {"Effusion"}
    assert after.keys() == {"Effusion", "Nodule"}
    assert after["Effusion"] == before["Effusion"]
    assert scored.metrics["labels"]["Effusion"]["min_sensitivity"] == 0.9
    assert [choice["positive"] for choice in added.metrics["threshold_choices"]] == ["Effusion", "Nodule"]
    assert added.metrics["labels"]["Effusion"]["threshold"] == before["Effusion"]["threshold"]


def test_without_a_name_each_label_is_decided_at_one_half(storage, trained, scored, data):
    found = evaluated(storage, trained[0].best, data, "at-default", positive="Effusion").metrics

    assert {row["threshold"] for row in found["labels"].values()} == {0.5}
    assert scored.metrics["labels"]["Effusion"]["threshold"] != 0.5


def test_predict_writes_a_probability_and_a_decision_for_each_label(storage, trained, scored, data, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = (str(data), str(tmp_path))
    spec = build(PredictSpec, model=str(trained[0].best), images=images, split="test", threshold="sensitivity-0.9")

    paths, result = done(storage, spec, "predicted")
    rows = rows_of(paths.predicted("csv"))

    scored_rows = rows_of(storage / "runs" / "scored" / "predictions.csv")
    assert [row["file"] for row in rows[:-1]] == [row["image"] for row in scored_rows]
    for row, scored_row in zip(rows, scored_rows, strict=False):
        decided = [name for name in LABELS if row[f"decision_{name}"] == "1"]
        assert row["decision"] == "|".join(decided)
        for name in LABELS:
            assert float(row[f"probability_{name}"]) == pytest.approx(
                float(scored_row[f"probability_{name}"]), abs=1e-5
            )
    assert rows[-1]["error"]
    assert {rows[-1][f"decision_{name}"] for name in LABELS} == {""}
    assert (result.metrics["answered"], result.metrics["unreadable"]) == (40, 1)
    assert result.metrics["called"] == {name: sum(row[f"decision_{name}"] == "1" for row in rows) for name in LABELS}


def test_the_json_of_predict_lists_the_labels_of_each_image(storage, trained, data):
    spec = build(PredictSpec, model=str(trained[0].best), images=(str(data),), split="test", form="json")

    paths, _ = done(storage, spec, "listed")
    rows = json.loads(paths.predicted("json").read_text())

    assert all(row.keys() == {"file", "decision", "probabilities", "error"} for row in rows)
    assert all(set(row["decision"]) <= set(LABELS) for row in rows)
    assert all(row["probabilities"].keys() == set(LABELS) for row in rows)


def test_an_exported_file_computes_the_probabilities_of_predict(storage, trained, scored):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)

    spec = build(ExportSpec, model=str(trained[0].best), format="torchscript", threshold="sensitivity-0.9")
    file = done(storage, spec, "export")[0].exported("pt")

    expected = Predictor.load(trained[0].best, torch.device("cpu")).probabilities(images)
    assert TorchScript().run(file, images) == pytest.approx(expected, abs=1e-4)
    assert_labels_in(TorchScript().metadata(file), scored)


def test_an_onnx_file_computes_the_probability_of_each_label(trained, scored, tmp_path):
    model, config, manifest = read_model(trained[0].best)
    # One layer: the tests of `export` have the backbone, which takes a third of a minute.
    model.backbone.network = nn.Sequential(nn.Conv2d(3, FEATURES, 32), nn.ReLU())
    calibration = read_calibration(StoredModel.of(trained[0].best, config, manifest), "sensitivity-0.9")
    exported, metadata = ExportedModel(model, config, calibration), export_metadata(config, calibration, "")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)

    Onnx().write(exported, images[:2], metadata, tmp_path / "model.onnx")

    assert verify_export(Onnx(), tmp_path / "model.onnx", exported, metadata, images) < 1e-5
    assert_labels_in(Onnx().metadata(tmp_path / "model.onnx"), scored)


def assert_labels_in(metadata, scored):
    thresholds = json.loads(metadata["thresholds"])
    assert json.loads(metadata["classes"]) == list(LABELS) == list(thresholds)
    assert thresholds["Effusion"] == scored.metrics["labels"]["Effusion"]["threshold"]
    assert metadata["multi_label"] == "true"


def test_the_report_has_a_row_for_each_label_and_no_confusion_matrix(storage, scored):
    page = (storage / "runs" / "scored" / "report.html").read_text(encoding="utf-8")

    assert "Metrics by label" in page
    assert "Confusion matrix" not in page
    assert all(f'<th scope="row">{name}</th>' in page for name in (*LABELS, "macro mean", "micro mean"))
    assert "The threshold of &#34;Effusion&#34; was chosen on the valid split" in page
    assert page.count("<svg") >= 3


def test_a_trial_of_a_search_trains_as_train_does(storage, trained, data, tmp_path):
    spec = build(SearchSpec, shards=str(data), **(QUICK | OPTIONS))
    attempt = Attempt.of(new_run(storage, spec, "search").folder, None, Settings(storage=storage))
    shared = HeadTrainingData.of(WorkerTask(attempt=attempt, spec=spec, source=None), torch.device("cpu"))
    lines = []

    with one_thread(True):
        head = HeadTraining(shared, shared.context.task.spec, tmp_path, lambda: None, 1)
        while not head.is_over:
            lines.append(head.epoch())

    for mine, theirs in zip(lines, read_lines(trained[0].metrics), strict=True):
        for name in ("train_loss", "valid_loss", "valid_accuracy", "valid_auroc", "valid_balanced_accuracy"):
            assert mine[name] == theirs[name]


def test_fine_tuning_with_an_average_of_the_weights_runs(storage, data):
    options = {"epochs": 1, "freeze": "6", "ema": 0.9, "augment": True, "best_by": "auroc"}

    _, result = done(storage, train_spec(data, **options), "tuned")

    assert result.metrics["multi_label"] is True


def test_two_models_are_compared_on_one_label_where_it_is_known(storage, scored, data):
    other, _ = done(storage, train_spec(data, **(OPTIONS | {"epochs": 1})), "other")
    worse = evaluated(storage, other.best, data, "worse")
    first = Predictions.read(storage / "runs" / "scored" / "predictions.safetensors")
    second = Predictions.read(storage / "runs" / "worse" / "predictions.safetensors")

    found = compare_predictions([first, second], positive="Nodule", metric="auroc", margin=0.02)

    figures = {figure.name: figure for figure in found.candidates[0].figures}
    assert len(found.labels) == scored.metrics["labels"]["Nodule"]["n"]
    assert figures["auroc"].first == pytest.approx(scored.metrics["labels"]["Nodule"]["auroc"])
    assert figures["auroc"].second == pytest.approx(worse.metrics["labels"]["Nodule"]["auroc"])


def test_multi_label_models_are_compared_on_the_positive_class_of_their_evaluations(storage, scored):
    found = Predictions.read(storage / "runs" / "scored" / "predictions.safetensors")
    first, unstated, other = (
        replace(found, about=replace(found.about, positive=name, positive_stated=is_stated))
        for name, is_stated in (("Nodule", True), ("Cardiomegaly", False), ("Effusion", True))
    )

    comparison = compare_predictions([first, unstated], positive=None, metric="sensitivity", margin=0.02)

    assert (comparison.positive, comparison.positive_stated) == ("Nodule", True)
    without = replace(unstated, about=replace(unstated.about, classes=("Cardiomegaly", "Effusion", "Nodules")))
    for evaluations in ([first, other], [unstated, unstated], [without, first]):
        with pytest.raises(SpecError, match=r"the positive class \(--positive\): Cardiomegaly, Effusion, Nodules?$"):
            compare_predictions(evaluations, positive=None, metric="auroc", margin=0.02)


def test_the_terminal_gets_a_line_for_each_label(scored):
    lines = label_lines(scored.metrics)

    assert [line.split(":")[0].strip() for line in lines] == list(LABELS)
    assert all("known" in line and "unknown" in line for line in lines)


def test_a_threshold_without_its_label_is_refused(storage, trained, data):
    spec = build(EvaluateSpec, model=str(trained[0].best), shards=str(data), min_sensitivity=0.9)

    with pytest.raises(SpecError, match=r"--min-sensitivity needs the label .*Cardiomegaly, Effusion, Nodule"):
        checked(Settings(storage=storage), spec)
    with pytest.raises(SpecError, match="--min-sensitivity needs the label"):
        done(storage, spec, "refused")


def test_data_of_one_class_an_image_is_refused_by_a_model_of_several_labels(storage, trained, tmp_path):
    counts = {f"{split}/{name}": 3 for split in ("train", "test") for name in LABELS}
    shards, _ = packed(tmp_path, counts)
    spec = build(EvaluateSpec, model=str(trained[0].best), shards=str(shards))

    with pytest.raises(ModelMismatch, match="one class per image and the model several labels"):
        checked(Settings(storage=storage), spec)
    with pytest.raises(ModelMismatch, match="one class per image and the model several labels"):
        done(storage, spec, "mismatch")
