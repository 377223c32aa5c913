"""Metrics by subgroup: of a kept column's values, with intervals, in result, table, terminal and report."""

import csv

import numpy as np
import pytest
import torch
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from data_shards.columns import MOST_VALUES, KeptColumn
from data_shards.pack.options import LabelOptions, PackOptions
from data_shards.pack.packing import pack
from tests.datasets import noise
from tests.trained import evaluated, lease_in
from trainer.data.feature_cache import FeatureCache, FeatureKey, Features
from trainer.data.split_features import SplitFeatures
from trainer.evaluation.subgroup_text import subgroup_lines
from trainer.evaluation.subgroups import DecidedImages, subgroup_rows
from trainer.model.bundle import publish_model
from trainer.model.efficientnet import build_model
from trainer.model.head import HeadConfig
from trainer.report import gather

SITE = KeptColumn(name="site")


def decided(labels, scores, *, units=None, classes=("covid", "normal"), positive="covid"):
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    probabilities = np.column_stack([scores, 1 - scores]) if scores.ndim == 1 else scores
    return DecidedImages(
        labels=labels,
        decisions=probabilities.argmax(axis=1),
        probabilities=probabilities,
        units=np.arange(len(labels)) if units is None else units,
        classes=classes,
        positive=positive,
        seed=0,
    )


def test_a_subgroup_has_the_metrics_of_its_images_alone():
    draw = np.random.default_rng(0)
    labels, sites = draw.integers(0, 2, 200), draw.choice(["north", "south"], 200)
    scores = np.clip(0.5 + 0.25 * (1 - 2 * labels) + draw.normal(0, 0.3, 200), 0.001, 0.999)

    rows = subgroup_rows(decided(labels, scores), [SITE], {"site": tuple(sites)})

    assert [row["value"] for row in rows] == ["north", "south"]
    for row in rows:
        at = sites == row["value"]
        hits, found = labels[at] == 0, scores[at] >= 0.5
        true, count = int((hits & found).sum()), int(hits.sum())
        low, high = beta.ppf(0.025, true, count - true + 1), beta.ppf(0.975, true + 1, count - true)
        assert (row["n"], row["groups"], row["positives"]) == (at.sum(), at.sum(), count)
        assert row["sensitivity"] == pytest.approx(true / count)
        assert row["intervals"]["sensitivity"] == pytest.approx([low, high])
        assert row["auroc"] == pytest.approx(roc_auc_score(hits, scores[at]))
        assert row["intervals"]["auroc"][0] < row["auroc"] < row["intervals"]["auroc"][1]


def test_intervals_of_a_subgroup_respect_groups():
    labels = np.repeat([0, 1], 30)
    scores = np.where(np.arange(60) % 30 < 24, 0.6, 0.4)

    single = subgroup_rows(decided(labels, scores), [SITE], {"site": ("a",) * 60})[0]
    grouped = subgroup_rows(decided(labels, scores, units=np.arange(60) // 6), [SITE], {"site": ("a",) * 60})[0]

    assert grouped["groups"] == 10
    assert np.diff(grouped["intervals"]["sensitivity"]) > 1.5 * np.diff(single["intervals"]["sensitivity"])


def test_too_few_images_of_a_subgroup_say_nothing():
    labels = [0] * 4 + [1] * 9 + [1] * 3
    metrics = {"classes": ["covid", "normal"], "positive": "covid", "positive_stated": True}

    rows = subgroup_rows(decided(labels, [0.9] * 4 + [0.2] * 12), [SITE], {"site": ("a",) * 13 + ("",) * 3})

    assert (rows[0]["auroc"], rows[0]["intervals"]["auroc"]) == (None, None)  # four positives
    assert (rows[1]["value"], rows[1]["positives"], rows[1]["sensitivity"]) == (None, 0, None)
    assert rows[1]["specificity"] == 1.0
    lines = subgroup_lines(metrics | {"subgroups": rows})
    assert lines[0].startswith("site a (13 images, 4 positive): sensitivity 1.0000 (0.3976 to 1.0000), specificity")
    assert lines[0].endswith("AUROC too few to say")
    assert lines[1].startswith("site not stated (3 images, 0 positive): sensitivity too few to say, specificity 1.0000")


def test_of_several_classes_without_a_positive_one_a_subgroup_has_accuracy_and_the_mean_auroc():
    draw = np.random.default_rng(1)
    labels = np.tile([0, 1, 2], 20)
    scores = draw.dirichlet((1, 1, 1), 60)
    metrics = {"classes": ["a", "b", "c"], "positive": "a", "positive_stated": False}

    row, other = subgroup_rows(
        decided(labels, scores, classes=("a", "b", "c"), positive=None),
        [SITE],
        {"site": tuple("x" if n < 45 or label == 2 else "y" for n, label in enumerate(labels))},
    )

    assert row["positives"] is None
    assert row["intervals"]["auroc"] is not None
    assert other["auroc"] is None  # there is no image of class c: the mean would be about other classes
    assert "mean AUROC too few to say" in subgroup_lines(metrics | {"subgroups": [row, other]})[1]


def test_of_many_values_the_rarest_are_counted_together():
    values = tuple(f"s{n % 25:02d}" for n in range(90))
    metrics = {"classes": ["covid", "normal"], "positive": "covid", "positive_stated": True}

    rows = subgroup_rows(decided([0, 1] * 45, [0.6] * 90), [SITE], {"site": values})

    assert len(rows) == MOST_VALUES
    assert rows[0]["left_out"] == 90 - sum(row["n"] for row in rows) > 0
    assert subgroup_lines(metrics | {"subgroups": rows})[-1] == "site: 15 images with other values"


@pytest.mark.parametrize("subgroups", [None, [], "damage", ["damage"], [{}]])
def test_results_of_earlier_versions_and_damaged_ones_have_no_subgroups(subgroups):
    assert subgroup_lines({"subgroups": subgroups}) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of two classes with a site and a column whose value is a formula and HTML."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "films").mkdir()
    rows = ["image,label,split,site,=note"]
    for n in range(36):
        noise(n).save(folder / "films" / f"{n:02d}.png")
        split, site = ("train", "valid", "test")[n // 12], ("north", "south", "")[n % 3]
        rows.append(f"{n:02d}.png,{('covid', 'normal')[n % 2]},{split},{site},{('=1+1', '<b>x</b>')[n % 4 // 2]}")
    (folder / "films" / "t.csv").write_text("\n".join(rows) + "\n")
    kept = (SITE, KeptColumn(name="=note"))
    labels = LabelOptions(tables=("t.csv",), keep_columns=kept)
    pack(folder / "films", folder / "shards", PackOptions(labels=labels, plain_groups=True, processes=1))
    return folder / "shards"


def test_an_evaluation_gives_subgroups_in_result_table_and_report(tmp_path, data, monkeypatch):
    config = HeadConfig(classes=("covid", "normal"), width=8, dropout=0.0, image_size=32, positive="covid")
    model = tmp_path / "model" / "best"
    model.parent.mkdir()
    publish_model(model, build_model(config), config, manifest={"data": ""}, lease=lease_in(model.parent))
    monkeypatch.setattr(gather, "_examples", lambda *_: ())  # Grad-CAM takes seconds

    found = evaluated(tmp_path, model, data)

    assert [(row["column"], row["value"], row["n"]) for row in found.metrics["subgroups"]] == [
        ("site", "north", 4), ("site", "south", 4), ("site", None, 4), ("=note", "<b>x</b>", 6), ("=note", "=1+1", 6),
    ]  # fmt: skip
    folder = tmp_path / "runs" / "evaluation"
    with (folder / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert sorted(row["column_site"] for row in table) == [""] * 4 + ["north"] * 4 + ["south"] * 4
    assert {row["column_=note"] for row in table} == {"'=1+1", "<b>x</b>"}
    page = (folder / "report.html").read_text()
    assert "<h2>Metrics by subgroup</h2>" in page
    assert '<th scope="row">not stated</th><td class="n">4</td>' in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<b>x</b>" not in page
    assert "too few to say" in page


def test_cached_features_keep_the_columns_and_those_of_earlier_versions_have_none(tmp_path):
    tensors, names = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)), {"sources": ("a", "b"), "groups": ("", "")}
    cache = FeatureCache(
        tmp_path, FeatureKey.of(HeadConfig(classes=("a", "b"), width=8, dropout=0.0, image_size=32)), 10**9
    )

    cache.write("0" * 64, Features.of(*tensors, **names, columns={"site": ("north", "")}))
    cache.write("1" * 64, Features.of(*tensors, **names))

    found = SplitFeatures(shards=tuple(cache.read(digit * 64) for digit in "01"), column_names=("site",))
    assert [shard.columns for shard in found.shards] == [{"site": ("north", "")}, {}]
    assert found.columns == {"site": ("north", "", "", "")}


def test_of_several_classes_the_auroc_of_the_positive_one_is_named_after_it():
    row = subgroup_rows(
        decided(np.tile([0, 1, 2], 20), np.random.default_rng(1).dirichlet((1, 1, 1), 60), classes=("a", "b", "c"),
                positive="b"),
        [SITE],
        {"site": ("x",) * 60},
    )[0]  # fmt: skip
    metrics = {"classes": ["a", "b", "c"], "positive": "b", "positive_stated": True, "subgroups": [row]}

    (line,) = subgroup_lines(metrics)

    assert f'AUROC of "b" {row["auroc"]:.4f} (' in line
