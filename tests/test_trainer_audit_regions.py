"""The model beside the audit of its data set: paired differences, rim and center blanked, Grad-CAM in the rim."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cluster.files import read_json
from data_shards.index import read_index
from tests.test_trainer_report_page import report_data
from trainer.audit.beside_model import AuditBesideModel, ModelMinusCheck, compare_with_checks
from trainer.audit.regions import (
    CPU,
    ModelRegions,
    RegionFigure,
    chosen_images,
    heat_share,
    mean_interval,
    measure_regions,
    probed_count,
    region_lines,
    rim,
)
from trainer.audit.saved import AuditScores, read_scores, save_audit
from trainer.data.transforms import normalised
from trainer.evaluation.predictions import Predictions
from trainer.model.bundle import read_model
from trainer.model.efficientnet import build_model
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig
from trainer.report.beside_audit import JudgedModel, beside_audit
from trainer.report.page import render

SIDE = 64  # two by two places on the last feature maps


def regions(heat=0.5, interval=(0.46, 0.54), **others):
    figures = tuple(
        RegionFigure(name=name, auroc=area, interval=(area - 0.01, area + 0.002))
        for name, area in [("whole image", 0.99), ("outer rim alone", 0.65), ("without the outer rim", 0.98)]
    )
    content = {"figures": figures, "images": 60, "total": 60, "without_heat": 0, "cells": 7}
    return ModelRegions(rim_area=0.4375, heat_in_rim=heat, heat_interval=interval, **(content | others))


def test_the_rim_is_the_outer_eighth_and_heat_is_shared_by_place():
    is_rim = rim(224)
    center, everywhere = np.zeros((224, 224), np.float32), np.ones((224, 224), np.float32)
    center[100:120, 100:120] = 1

    assert is_rim.mean() == 1 - 0.75**2
    assert heat_share(center, is_rim) == 0
    assert heat_share(everywhere, is_rim) == pytest.approx(is_rim.mean())
    assert np.isnan(heat_share(0 * center, is_rim))


def test_a_sample_has_equally_many_images_of_each_class_as_far_as_there_are():
    labels = np.array([0] * 100 + [1] * 10 + [2] * 3)

    rows = chosen_images(labels, 30)

    assert np.bincount(labels[rows]).tolist() == [17, 10, 3]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert chosen_images(labels, 113).tolist() == list(range(113))
    assert [probed_count(side) for side in (32, 224, 448, 1024)] == [200, 200, 50, 40]


def test_the_interval_of_a_mean_is_students_and_groups_widen_it():
    values = np.random.default_rng(0).uniform(size=30)

    alone = mean_interval(values, np.arange(30))
    grouped = mean_interval(np.repeat(values, 3), np.repeat(np.arange(30), 3))

    reach = 2.0452296 * values.std(ddof=1) / 30**0.5  # t quantile of 29 degrees of freedom
    assert alone == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert grouped == pytest.approx(alone)
    assert mean_interval(np.full(5, 0.3), np.arange(5)) is None
    assert mean_interval(np.array([0.4375, 0.4375 + 1e-12]), np.arange(2)) is None
    assert mean_interval(values, np.zeros(30, dtype=np.int64)) is None


def test_a_model_that_sees_the_center_has_an_auroc_of_1_and_of_a_half_where_the_rim_alone_is_left():
    torch.manual_seed(0)
    config = HeadConfig(classes=("dark", "bright"), width=8, dropout=0.0, image_size=SIDE, precision="fp16")
    model = build_model(config).eval()
    model.head = torch.nn.Linear(1280, 2)
    labels = np.tile([0, 1], 6)
    images = np.full((12, 1, SIDE, SIDE), 50, dtype=np.uint8)  # a rim that is the same in all images
    images[:, :, 8:-8, 8:-8] = np.where(labels == 1, 250, 10)[:, None, None, None]
    features = FoldedBackbone(model.backbone, "fp32", CPU)(torch.from_numpy(images), partial(normalised, config=config))
    step = features[1] - features[0]
    with torch.no_grad():  # from the dark images towards the bright ones, so that the model tells them apart
        model.head.weight[1], model.head.weight[0] = 10 * step / step.square().sum(), 0
        model.head.bias[1], model.head.bias[0] = -(model.head.weight[1] @ (features[0] + features[1])) / 2, 0
    batches = [SimpleNamespace(images=torch.from_numpy(images[start : start + 5])) for start in (0, 5, 10)]

    found = measure_regions(model, config, batches, labels, np.arange(12) // 2, positive=1, temperature=1.0, total=500)

    areas = {one.name: one.auroc for one in found.figures}
    assert areas["outer rim alone"] == 0.5
    assert areas["whole image"] == areas["without the outer rim"] == 1
    assert (found.images, found.total, found.cells) == (12, 500, 2)
    assert found.rim_area == 0.4375
    assert found.without_heat == 6  # the class dark has no weights
    assert found.heat_in_rim == pytest.approx(found.rim_area, abs=0.01)


@pytest.mark.parametrize(
    ("heat", "interval", "expected"),
    [
        (0.50, (0.46, 0.54), "predicted class lies in the rim (95 % CI 46 to 54 %), more than the 44 %"),
        (0.30, (0.25, 0.35), "less than the 44 %"),
        (0.46, (0.40, 0.52), "not clearly different from the 44 %"),
        (0.44, None, "about as much as the 44 %"),
        (None, None, "The Grad-CAM heatmaps of the predicted classes are empty."),
    ],
)  # fmt: skip
def test_the_share_of_grad_cam_is_told_beside_the_area_and_never_as_a_proof(heat, interval, expected):
    lines = region_lines(regions(heat, interval))

    assert expected in " ".join(lines)
    assert lines[0].startswith("With the center blanked, so that the outer rim alone is left, the model reaches an ")
    assert "0.650 (0.640 to 0.652)" in lines[0]
    assert lines[-1].startswith("This proves nothing about what the model looks at: ")


def test_a_region_without_an_auroc_is_not_told():
    undefined = tuple(replace(one, auroc=None) for one in regions().figures)

    assert region_lines(regions(figures=undefined))[0].startswith("50 % of the Grad-CAM heatmap")


def scores_of(count, classes=2, seed=0):
    """Scores of two checks for random images; the second check has not scored the first five."""
    random = np.random.default_rng(seed)
    samples = random.integers(0, 255, (count, 16), dtype=np.uint8)
    first, second = random.dirichlet(np.ones(classes), count), random.dirichlet(np.ones(classes), count)
    second[:5] = np.nan
    labels = random.integers(0, classes, count)
    return AuditScores(samples=samples, labels=labels, scores={"image size": first, "outer rim": second})


def test_the_difference_is_of_the_aurocs_on_the_images_that_both_have_scored():
    scores = scores_of(60)
    order = np.random.default_rng(1).permutation(40)  # the model has scored 40 of the 60, in another order
    model = np.random.default_rng(2).dirichlet(np.ones(2), 40)

    found = compare_with_checks(scores, scores.samples[order], model, np.arange(40), positive=1)

    known = order >= 5
    check = roc_auc_score(scores.labels[order][known], scores.scores["outer rim"][order][known, 1])
    mine = roc_auc_score(scores.labels[order][known], model[known, 1])
    assert found["outer rim"].images == known.sum() == 35
    assert found["outer rim"].difference == pytest.approx(mine - check)
    assert found["outer rim"].interval[0] < mine - check < found["outer rim"].interval[1]
    assert found["image size"].images == 40
    constant = replace(scores, scores={"file format": np.full((60, 2), 0.5)})
    assert compare_with_checks(constant, scores.samples[order], model, np.arange(40), positive=1) == {}
    assert compare_with_checks(scores, scores.samples[:0], model[:0], np.arange(0), positive=1) == {}


def test_scores_are_kept_beside_the_audit(tmp_path):
    scores = scores_of(9)

    save_audit(tmp_path, "digest", {"checks": []}, scores)
    found = read_scores(tmp_path, "digest", 2)

    assert found.scores.keys() == scores.scores.keys()
    np.testing.assert_array_equal(found.scores["outer rim"], scores.scores["outer rim"])
    np.testing.assert_array_equal(found.samples, scores.samples)
    np.testing.assert_array_equal(found.labels, scores.labels)
    assert read_scores(tmp_path, "none", 2) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"samples": np.zeros((9, 4), np.uint8)},
        {"samples": np.zeros((9, 16), np.int64)},
        {"samples": np.zeros((8, 16), np.uint8)},
        {"samples": np.zeros((), np.uint8)},
        {"labels": np.zeros(9)},
        {"labels": np.zeros((9, 1), np.int64)},
        {"labels": np.full(9, 2)},
        {"scores": {"image size": np.zeros(9)}},
        {"scores": {"image size": np.zeros((9, 3))}},
        {"scores": {"image size": np.zeros((9, 2), np.int64)}},
        {"scores": {"image size": np.full((9, 2), np.inf)}},
    ],
)
def test_scores_of_another_shape_or_type_are_none(tmp_path, damage):
    save_audit(tmp_path, "digest", {}, replace(scores_of(9), **damage))

    assert read_scores(tmp_path, "digest", 2) is None


def test_a_file_of_scores_that_is_cut_off_is_none(tmp_path):
    (tmp_path / "audits").mkdir()
    (tmp_path / "audits" / "cut.safetensors").write_bytes(b"cut off")

    assert read_scores(tmp_path, "cut", 2) is None


def test_a_trained_model_stands_beside_the_audit_of_its_data(tmp_path, digits_training, digits_shards):
    index = read_index(str(digits_shards))
    judged = JudgedModel(
        partial(read_model, digits_training.best),
        read_json(digits_training.result)["metrics"],
        Predictions.read(digits_training.predictions),
    )
    labels = judged.predictions.labels
    check = np.random.default_rng(0).dirichlet(np.ones(10), len(labels))
    scores = AuditScores(samples=judged.predictions.samples, labels=labels, scores={"rim": check})
    save_audit(tmp_path, index.digest, {}, scores)

    found = beside_audit(tmp_path, str(digits_shards), index, judged)

    difference, auroc = found.differences["rim"], judged.metrics["auroc"]
    assert difference.check == pytest.approx(roc_auc_score(labels, check, multi_class="ovr"))
    assert difference.model == pytest.approx(auroc)
    assert difference.difference == pytest.approx(auroc - difference.check)
    assert difference.images == len(labels) == 47
    assert found.regions.figures[0].auroc == pytest.approx(auroc, abs=0.02)
    assert (found.regions.images, found.regions.total) == (min(200, len(labels)), len(labels))
    assert found.regions.rim_area == rim(32).mean()
    folds = replace(judged, metrics={**judged.metrics, "out_of_fold": {"folds": 5, "repeats": 1}})
    assert beside_audit(tmp_path, str(digits_shards), index, folds).regions is None


def test_the_report_shows_the_differences_and_what_the_model_does_with_the_rim():
    check = {"name": "image size", "explanation": "x", "auroc": 0.95, "low": 0.9, "high": 0.99, "alarm": True}
    kept = {"checks": [check], "sentence": "Image size alone reaches an AUROC of 0.950.", "images": 60, "total": 60}
    difference = ModelMinusCheck(check=0.95, model=0.94, difference=-0.01, interval=(-0.03, 0.01), images=60)
    beside = AuditBesideModel(differences={"image size": difference}, regions=regions())

    page = render(replace(report_data(), audit=kept, beside=beside))

    assert "\N{MINUS SIGN}0.010<br><small>\N{MINUS SIGN}0.030 to +0.010</small>" in page
    assert "on the same 60 images" in page
    assert "more than the 44 % that the area of the rim alone would give" in page
    assert "this model − check" not in render(replace(report_data(), audit=kept))


def test_the_report_says_the_number_of_images_of_each_check_where_they_differ():
    checks = [
        {"name": name, "explanation": "x", "auroc": 0.9, "low": None, "high": None, "alarm": False}
        for name in ("image size", "outer rim")
    ]
    kept = {"checks": checks, "sentence": "No alarm.", "images": 60, "total": 60}
    of_size = ModelMinusCheck(check=0.95, model=0.94, difference=-0.01, interval=None, images=60)
    differences = {"image size": of_size, "outer rim": replace(of_size, images=41)}

    page = render(replace(report_data(), audit=kept, beside=AuditBesideModel(differences=differences)))

    assert "difference of the AUROCs on the images that both have scored (" in page
    assert "<small>60 images</small>" in page
    assert "<small>41 images</small>" in page
