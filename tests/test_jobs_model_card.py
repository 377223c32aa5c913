"""`nightshift models card`: a page about a model, with what nobody stated."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.files import read_json, write_json
from cluster.run_paths import RunPaths
from data_shards.about import About
from data_shards.columns import KeptColumn
from data_shards.index import Shard, ShardIndex, write_index
from tests.audited import CHECK
from tests.compared import OF_A, A, change, predictions_of, succeed
from tests.trained import lease_in
from trainer.audit.saved import save_audit
from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.predictions import read_about
from trainer.evaluation.subgroups import DecidedImages, subgroup_rows
from trainer.model.head import HeadConfig
from trainer.report import checklists
from trainer.report.checklists import ITEMS, filled_items
from trainer.report.environment import number_text
from trainer.report.model_card import CardFigures, metric_in_unit

TEMPLATE = Path(checklists.__file__).with_name("model_card.html.j2")
WEIGHTS, SITE = "0" * 64, KeptColumn(name="site")
ABOUT = About(source="<script>films</script>", intended_use="triage, research alone")


def write_data(folder, about=ABOUT):
    """Write the index of a data set with 24 images of each split."""
    shards = [
        Shard(name=f"{split}-0.tar", split=split, samples=24, per_class=(12, 12), bytes=1, sha256=f"{n}" * 64)
        for n, split in enumerate(("train", "valid", "test"))
    ]
    index = ShardIndex(
        classes=("covid", "normal"),
        shards=tuple(shards),
        columns=(SITE,),
        options={"allow_leakage": False},
        grouped=True,
    ).sealed()
    folder.mkdir()
    write_index(folder, index.model_copy(update={"about": about}))
    return index


def judged(seed, split, index):
    """Return predictions of a split, and the metrics that a result has of them."""
    found = predictions_of(seed, split, WEIGHTS)
    metrics = classification_metrics(found.probabilities, found.labels, classes=index.classes, positive="covid")
    images = DecidedImages(
        labels=found.labels,
        decisions=found.decisions,
        probabilities=found.probabilities,
        units=np.arange(24),
        classes=index.classes,
        positive="covid",
        seed=0,
    )
    rows = subgroup_rows(images, [SITE], {"site": ("north",) * 14 + ("south",) * 8 + ("",) * 2})
    about = found.about.__class__(**{**vars(found.about), "data": index.digest})
    return found.__class__(**{**vars(found), "about": about}), metrics | {"split": split, "subgroups": rows}


@pytest.fixture
def data(settings):
    return settings.storage / "data"


@pytest.fixture
def there(say, settings, data):
    """A training and an evaluation of its model on the test split."""
    index = write_data(data)
    train, evaluate = succeed(settings.storage, A, "train"), succeed(settings.storage, OF_A, "evaluate")
    write_json(train.spec, {"kind": "train", "shards": str(data), "lr": 1e-3, "positive": "covid"})
    train.best.mkdir()
    head = HeadConfig(classes=index.classes, width=512, dropout=0.4, image_size=224, positive="covid")
    write_json(train.best / "head.json", head.model_dump(mode="json"))
    write_json(train.best / "manifest.json",
               {"files": {"model.safetensors": WEIGHTS}, "run": A, "data": index.digest})  # fmt: skip
    write_json(evaluate.spec, {"kind": "evaluate", "model": A, "shards": str(data), "split": "test"})
    for paths, split, details in ((train, "valid", {"best_epoch": 3}), (evaluate, "test", {"evaluations_of_split": 7})):
        predictions, metrics = judged(len(split), split, index)
        predictions.write(paths.predictions, lease_in(paths.folder))
        write_json(paths.result, {"kind": paths.run_id.partition("-")[0], "metrics": metrics, **details})
    return say


def page_of(say, settings, *options):
    code, out, err = say("models", "card", A, *options)
    assert (code, err) == (0, "")
    return Path(out.strip()).read_text(encoding="utf-8")


def test_a_card_has_figures_with_intervals_data_limits_subgroups_and_the_command(there, settings, data):
    page = page_of(there, settings)

    auroc = read_json(RunPaths.of(settings.storage, OF_A).result)["metrics"]["auroc"]
    assert (RunPaths.of(settings.storage, A).best / "card.html").is_file()
    assert "triage, research alone" in page
    assert page.index("Test split, 24 images") < page.index("Valid split, 24 images")
    assert f'<td class="n">{auroc:.4g}</td>' in page
    assert "The test split has only 12 " in page.replace("&#34;", '"')
    assert "7 times" in page
    assert "Metrics are optimistic" in page or "its metrics are optimistic" in page
    assert '<th scope="row">north</th>' in page
    assert "too few to say" in page
    assert f"nightshift train {data} --lr 0.001 --positive covid" in page
    assert "none: no image or group is in two splits" in page
    assert page.count("<h2>Metrics by subgroup</h2>") == 2
    assert "<dt>class weights</dt><dd><code>automatic</code></dd>" in page


def test_a_card_gives_the_number_of_images_that_a_metric_of_a_label_is_about():
    row = {"n": 30, "positives": 12, "unknown": 4, "auroc": 0.9, "sensitivity": 0.8, "specificity": None}
    metrics = {"split": "test", "n": 34, "labels": {"mass": row}}

    figures = CardFigures(run="r", ended="", shards="s", metrics=metrics, limits=())

    assert [(one.name, one.of, one.note) for one in figures.rows] == [
        ("AUROC", '"mass"', "12 present, 18 absent, 4 unknown"),
        ("sensitivity", '"mass"', "12 present"),
        ("specificity", '"mass"', "18 absent"),
    ]


def test_a_card_says_one_image_of_one_image():
    figures = CardFigures(run="r", ended="", shards="s", metrics={"split": "test", "n": 1}, limits=())

    assert figures.title == "test split, 1 image"


def test_a_card_says_what_is_undefined_and_what_calibration_is_about():
    probabilities, labels = np.eye(3)[[0, 0, 1, 1]] * 0.7 + 0.1, np.array([0, 0, 0, 1])
    metrics = classification_metrics(probabilities, labels, classes=("a", "b", "c"), positive=None)
    figures = CardFigures(run="r", ended="", shards="s", metrics={"split": "test", **metrics}, limits=())

    notes = {one.name: one.note for one in figures.rows}

    assert notes["average precision"] == "macro average without c: this split has no such images"
    assert notes["calibration error (ECE)"] == notes["calibration slope"] == "of the most probable class"


def test_a_card_gives_the_calibration_error_in_the_unit_of_the_report():
    text = metric_in_unit(0.0312, "ece")

    assert text == number_text(0.0312) == "0.0312"


def test_a_card_shows_the_auroc_of_the_audit_as_the_audit_does(there, settings, data):
    check = {**CHECK, "auroc": 0.93, "low": 0.8812, "high": 0.99998}
    audit = {"images": 72, "total": 72, "checks": [check], "sentence": "The rim alone reaches 0.930."}
    save_audit(settings.storage, read_json(data / "index.json")["digest"], audit)

    page = page_of(there, settings)

    assert '<td class="n">0.930<br><small>0.881 to &gt;0.999</small></td>' in page


def test_a_card_has_a_dash_for_what_a_file_of_a_threshold_does_not_say(there, settings):
    file = RunPaths.of(settings.storage, A).best / "thresholds" / "careful.json"
    file.parent.mkdir()
    write_json(file, {"model": WEIGHTS, "name": "careful", "classes": {"covid": {"threshold": 0.25}}})

    page = page_of(there, settings)

    row = '<tr><th scope="row">careful</th><td>covid</td><td class="n">0.25</td>' + 3 * '<td class="n">–</td>' + "</tr>"
    assert row in page


def test_a_model_that_was_cross_validated_on_train_alone_has_its_figures(there, settings):
    paths = RunPaths.of(settings.storage, A)
    change(settings.storage, A, about=replace(read_about(paths.predictions), split="train"))
    result = read_json(paths.result)
    judged_so = {"split": "train", "out_of_fold": {"folds": 3, "repeats": 1}}
    write_json(paths.result, {**result, "metrics": {**result["metrics"], **judged_so}})

    page = page_of(there, settings)

    assert "Out of fold, 3 folds x 1 repeat, train, 24 images" in page


def test_text_from_outside_is_escaped_and_what_nobody_stated_is_said(there, settings):
    page = page_of(there, settings)

    assert "&lt;script&gt;films&lt;/script&gt;" in page
    assert "<script" not in page
    assert '<dt>Ethics approval and consent</dt><dd class="open">not stated</dd>' in page
    rows = page.split("<h2>Reporting guidelines</h2>")[1]
    assert '<th scope="row">Source of the data</th><td>5a</td><td>11</td><td>7</td><td>Data</td>' in rows
    assert '<th scope="row">Ethics approval</th><td>17</td><td>6</td><td>–</td><td class="open">not stated</td>' in rows


def test_a_card_says_so_if_the_data_set_and_the_evaluations_are_gone(there, settings, data):
    (data / "index.json").unlink()
    for run in (A, OF_A):
        RunPaths.of(settings.storage, run).predictions.unlink()

    page = page_of(there, settings, "--output", str(settings.storage / "a.html"))

    assert "cannot be read as it was when the model was trained" in page
    assert "No run of this storage has evaluated the model." in page
    assert (
        '<th scope="row">Performance with confidence intervals</th><td>23a</td><td>31</td><td>38</td><td class="open">'
        in page
    )


def test_a_description_that_came_later_is_on_the_card(there, settings, data, tmp_path):
    (tmp_path / "dataset.yaml").write_text("ethics: approved 2021-17\n")

    there("shards", "describe", str(data), str(tmp_path / "dataset.yaml"))

    assert "approved 2021-17" in page_of(there, settings)


def test_a_card_that_cannot_be_written_is_refused_in_one_line(there, settings):
    code, out, err = there("models", "card", A, "--output", str(settings.storage / "none" / "card.html"))

    assert (code, out) == (2, "")
    assert "cannot be written; name a file in a folder that exists" in err


def test_every_item_of_the_guidelines_is_open_until_something_fills_it():
    assert all(one.is_open for one in filled_items(set()))
    assert {one.item.topic for one in filled_items({"index"}) if not one.is_open} == {
        item.topic for item in ITEMS if item.needs == "index"
    }
    sections = re.findall("<h2>(.+?)</h2>", TEMPLATE.read_text() + TEMPLATE.with_name("subgroups.html.j2").read_text())
    assert {item.where for item in ITEMS if item.where} <= set(sections)
    assert all(bool(item.needs) == bool(item.where) for item in ITEMS)


def test_every_cited_number_is_one_of_the_guideline():
    last = {"tripod": 27, "stard": 40, "claim": 44}

    for item in ITEMS:
        for guideline, most in last.items():
            cited = getattr(item, guideline)
            assert all(re.fullmatch(r"([1-9]\d?)[a-g]?", number) for number in cited.split(", ") if cited)
            assert all(int(number.rstrip("abcdefg")) <= most for number in cited.split(", ") if cited)


@pytest.mark.parametrize(
    ("key", "value"),
    [("n", "many"), ("auroc", "high"), ("subgroups", None), ("intervals", 7), ("confusion_matrix", [[1, "b"]])],
)
def test_a_damaged_result_is_left_out_of_the_card_and_named_in_one_line(there, settings, key, value):
    file = RunPaths.of(settings.storage, OF_A).result
    result = read_json(file)
    rows = [{**row, "intervals": 7} for row in result["metrics"]["subgroups"]]
    write_json(file, {**result, "metrics": {**result["metrics"], key: value or rows}})

    code, out, err = there("models", "card", A)

    assert code == 0
    assert re.fullmatch(rf"result\.json of {OF_A} is damaged \(\w+\), and what it tells is not shown\n", err)
    page = Path(out.strip()).read_text(encoding="utf-8")
    assert "Valid split, 24 images" in page
    assert "Test split, 24 images" not in page


@pytest.mark.parametrize("content", ["no json", "[]", "{}", '{"metrics": {"accuracy": 0.5}}'])
def test_a_result_without_the_figures_of_a_split_is_left_out_of_the_card(there, settings, content):
    RunPaths.of(settings.storage, OF_A).result.write_text(content)

    code, out, err = there("models", "card", A)

    assert (code, err.count("\n")) == (0, 1)
    assert OF_A in err
    assert "Valid split, 24 images" in Path(out.strip()).read_text(encoding="utf-8")
