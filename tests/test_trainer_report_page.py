import html
import io
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment
from PIL import Image

import trainer
from data_shards.index import Shard, ShardIndex
from tests.browser import CHROMIUM, RENDERED, open_browser
from tests.stack import eventually
from tests.trained import lease_in
from trainer.evaluation.calibration import predicted_classes
from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.predictions import Predictions
from trainer.report.environment import number_text, percent_text
from trainer.report.examples import worst_misclassified
from trainer.report.gradcam import jpeg, overlay
from trainer.report.head_comparison import HeadComparison
from trainer.report.multi_label import MultiLabelReportData
from trainer.report.page import ReportData, compile_templates, render, write_page
from trainer.report.source_version import source_version
from trainer.specs import SearchSpec, build
from trainer.specs.search_space import Space

TRAINER = Path(trainer.__file__).parent
PROBE = """<script>
const images = [...document.images];
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title = JSON.stringify({
  images: images.length, broken: images.filter(i => !i.complete || !i.naturalWidth).length,
  overflow: wide, charts: [...document.querySelectorAll("svg.chart")].filter(c => c.getBBox().width > 100).length,
  errors: window.errors || []});
</script></body>"""
PAPER = 690  # CSS pixels between the margins of A4
CUT = """[...document.querySelectorAll("main *")].filter(one => getComputedStyle(one).overflowX !== "visible"
  && one.scrollWidth > one.clientWidth + 2).map(one => one.className + ": " + one.textContent.trim().slice(0, 60))"""
CATCHER = "<head><script>window.errors = []; addEventListener('error', e => errors.push(e.message), true)</script>"


def report_data(count=60, classes=("covid", "normal"), epochs=5, threshold=0.3, seed=0):
    """Content of a report: random predictions with some errors, and generated images."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(classes), count)
    logits = random.normal(size=(count, len(classes))) * 1.5
    logits[np.arange(count), labels] += 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    metrics = classification_metrics(probabilities, labels, classes=classes, positive=classes[0], threshold=threshold)
    misclassified = worst_misclassified(
        np.arange(count),
        labels,
        predicted_classes(probabilities, positive=0, threshold=threshold),
        probabilities,
        positive=0,
    )
    ramp = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(1, 64, 64)
    picture, heatmap = jpeg(ramp), overlay(ramp, np.eye(64, dtype=np.float32))
    shards = [
        Shard(
            name=f"{split}-0.tar",
            split=split,
            samples=2 * len(classes),
            per_class=(2,) * len(classes),
            bytes=1,
            sha256="0" * 64,
        )
        for split in ("train", "test")
    ]
    return ReportData(
        run_id="train-20260102-030405-abcdef",
        kind="train",
        ended="2026-01-02T03:04:05Z",
        spec={"kind": "train", "best_by": "loss", "lr": 5e-4},
        metrics={"split": "test", **metrics},
        predictions=Predictions(ids=np.arange(count), labels=labels, probabilities=probabilities),
        index=ShardIndex(classes=classes, shards=tuple(shards)),
        epochs=[
            {"epoch": e, "train_loss": 1 / e, "valid_loss": 1.2 / e, "valid_accuracy": 1 - 0.5 / e, "valid_auroc": None}
            for e in range(1, epochs + 1)
        ],
        misclassified=[replace(image, image=picture, heatmap=heatmap) for image in misclassified],
    )


def test_the_report_needs_no_other_file_and_no_network(tmp_path):
    write_page(lease_in(tmp_path), report_data())

    page = (tmp_path / "report.html").read_text()
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page) + re.findall(r"url\(([^)]+)\)", page)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "<script" not in page
    assert "@import" not in page
    assert {path.name for path in tmp_path.iterdir()} == {"attempts", "report.html"}


def test_it_says_when_the_run_ended_as_people_read_a_time():
    page = render(report_data())

    assert "<span>2026-01-02 03:04:05 UTC</span>" in page


def test_the_summary_counts_false_negatives():
    data = report_data()
    false_negatives, positives = data.metrics["false_negatives"], int((data.predictions.labels == 0).sum())

    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", render(data)))

    assert false_negatives > 0
    assert f"{false_negatives} of {positives} &#34;covid&#34; images are false negatives" in text


@pytest.mark.parametrize(
    ("images", "split", "line"),
    [
        (
            "valid",
            "test",
            "chosen on the valid split for a sensitivity of at least 90.0 %; the test split was not used.",
        ),
        ("valid", "valid", "chosen on the valid split for a sensitivity of at least 90.0 %."),
        ("out of fold", "train", "chosen on the predictions out of fold for a sensitivity of at least 90.0 %."),
        ("out of fold", "test", "of fold for a sensitivity of at least 90.0 %; the test split was not used."),
    ],
)
def test_the_report_says_where_the_threshold_was_chosen_and_whether_its_own_split_was_used(images, split, line):
    choice = {"positive": "covid", "chosen_on": images}
    data = report_data()
    metrics = {**data.metrics, "split": split, "min_sensitivity": 0.9, "threshold_choices": [choice]}

    page = render(replace(data, metrics=metrics)).replace("\u202f", " ")

    assert line in page


def test_the_rows_of_classes_are_computed_once():
    data = report_data()

    assert data.class_rows is data.class_rows


def test_asking_for_the_version_of_the_source_writes_nothing_into_the_checkout(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "file").write_text("text")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    os.utime(tmp_path / "file", (1, 1))  # git compares the file with its index, and would store the new time there
    before = (tmp_path / ".git" / "index").read_bytes()

    version = source_version(tmp_path)

    assert re.fullmatch("[0-9a-f]{12}", version)
    assert (tmp_path / ".git" / "index").read_bytes() == before


def test_a_process_that_has_compiled_the_templates_compiles_none_for_a_report(monkeypatch):
    compile_templates(ReportData.template, MultiLabelReportData.template)
    compiled = []
    monkeypatch.setattr(Environment, "compile", lambda _, source, *others, **named: compiled.append(source))

    page = render(report_data())

    assert (compiled, page[:15]) == ([], "<!doctype html>")


def test_class_names_are_escaped():
    page = render(report_data(classes=("<script>alert(1)</script>", 'a"&b')))

    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_most_confident_false_negative_comes_first():
    data = report_data(count=300)
    false_negatives = [image for image in data.misclassified if image.kind == "false_negative"]

    page = render(data)

    confidences = [image.probabilities[0] for image in false_negatives]
    assert len(false_negatives) > 2
    assert confidences == sorted(confidences)
    assert [image.kind for image in data.misclassified] == sorted(m.kind for m in data.misclassified)
    first, second = (page.index(f"image {image.id}</small>") for image in false_negatives[:2])
    assert first < second


def test_the_report_gives_the_number_of_errors_that_it_does_not_show():
    data = report_data(count=400, classes=("a", "b", "c"), threshold=None)
    error_counts = sum(map(sum, data.metrics["confusion_matrix"])) - int(np.trace(data.metrics["confusion_matrix"]))

    page = render(data)

    assert sum(data.error_counts.values()) == error_counts
    assert data.error_counts["other"] > 12
    assert f"Errors between other classes <small>12 of {data.error_counts['other']}</small>" in page


def test_a_split_of_one_class_gives_a_report():
    data = report_data(count=6)
    only = replace(
        data,
        predictions=Predictions(
            ids=np.arange(6), labels=np.ones(6, dtype=np.int64), probabilities=data.predictions.probabilities
        ),
        metrics={
            "split": "test",
            **classification_metrics(
                data.predictions.probabilities, np.ones(6, dtype=np.int64), classes=data.classes, positive="covid"
            ),
        },
    )

    page = render(only)

    assert "This split has no &#34;covid&#34; images" in page
    assert "all images of this split are normal" in page
    assert "ROC curve" not in page


def judged_as(data, labels, **options):
    """The report of other true classes."""
    predictions = replace(data.predictions, labels=labels)
    metrics = classification_metrics(predictions.probabilities, labels, classes=data.classes, **options)
    return replace(data, predictions=predictions, metrics={"split": "test", **metrics})


def words_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).replace("\u202f", " ").replace("&#34;", '"')


def test_a_class_without_images_has_neither_errors_nor_shares():
    data = report_data(count=6)

    page = render(judged_as(data, np.ones(6, dtype=np.int64), positive=None))

    assert 'This split has no "covid" images, ' in words_of(page)
    assert "0 of 0" not in page
    assert "<b>0</b><span>–</span>" in page
    assert "Balanced accuracy <small>mean recall without covid: this split has no such images</small>" in page
    assert "Calibration slope (1 is best)</dt><dd>–</dd>" in page


def test_what_is_a_mean_over_classes_is_called_so():
    data = report_data(count=90, classes=("a", "b", "c"), threshold=None)

    words = words_of(render(judged_as(data, data.predictions.labels % 2, positive=None)))

    assert "Mean AUROC" in words
    assert "macro average without c: this split has no such images" in words
    assert "observed frequency of the most probable class" in words


@pytest.mark.parametrize(
    ("grouped", "sentence"),
    [
        (True, "trained without its fold, and no group is in two folds."),
        (False, "Groups are unknown: if a patient has several images, they may be in several folds"),
    ],
)
def test_only_known_groups_are_said_to_be_in_one_fold(grouped, sentence):
    data = report_data()
    figures = {"auroc": 0.9, "accuracy": 0.8, "loss": 0.5, "intervals": {"accuracy": [0.7, 0.9]}}
    own, linear = {"head": "mlp", "name": "three-layer"}, {"head": "lda", "name": "linear", "images": 48}
    rows = [{**own, **figures}, {**linear, **figures}]
    heads = HeadComparison(judged_on="out of fold", rows=rows, images=60)

    words = words_of(render(replace(data, heads=heads, index=data.index.model_copy(update={"grouped": grouped}))))

    assert sentence in words
    assert "linear fitted on at least 48 images" in words
    assert "this table does not show that it has learnt more than a linear function of the features" in words


def test_predictions_are_read_back_as_they_were_written(tmp_path):
    written = report_data().predictions

    written.write(tmp_path / "predictions.safetensors", lease_in(tmp_path))
    read = Predictions.read(tmp_path / "predictions.safetensors")

    for name in ("ids", "labels", "probabilities"):
        assert np.array_equal(getattr(read, name), getattr(written, name))


def test_an_overlay_colours_only_where_the_heatmap_is_high():
    gray = np.full((1, 32, 32), 100, dtype=np.uint8)
    heatmap = np.zeros((32, 32), dtype=np.float32)
    heatmap[:, 16:] = 1.0

    pixels = np.asarray(Image.open(io.BytesIO(overlay(gray, heatmap))).convert("RGB")).astype(int)

    assert np.ptp(pixels[:, :12], axis=2).max() <= 12
    assert np.ptp(pixels[:, 20:], axis=2).min() > 40


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_every_image_and_chart_without_error_or_overflow(tmp_path, width):
    data = report_data(count=200, classes=tuple(f"a rather long class name {n}" for n in range(12)), threshold=None)
    page = render(data).replace("<head>", CATCHER).replace("</body>", PROBE)
    (tmp_path / "report.html").write_text(page)

    shown = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900", "--dump-dom", "--enable-logging=stderr", (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip

    reported = json.loads(re.search(r"<title>(\{.*?\})</title>", shown.stdout).group(1))
    assert reported == {"images": 2 * len(data.misclassified), "broken": 0, "overflow": 0, "charts": 6, "errors": []}
    assert "CONSOLE" not in shown.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_paper_shows_whole_tables_and_names_in_dark_letters(tmp_path):
    data = report_data(count=200, classes=tuple(f"class{n}" for n in range(9)), threshold=None)
    name = "train/covid/" + "9fdd3c30_" * 12
    data = replace(data, misclassified=[replace(one, source=name) for one in data.misclassified])
    (tmp_path / "report.html").write_text(render(data))

    with open_browser(tmp_path / "profile") as browser:
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
        browser.size(PAPER, 900)
        browser.open((tmp_path / "report.html").as_uri())
        assert eventually(lambda: browser.evaluate(RENDERED) and browser.evaluate("!!document.querySelector('main')"))
        cut = browser.evaluate(CUT)
        colors = browser.evaluate("getComputedStyle(document.body).color + getComputedStyle(document.body).background")

    assert cut == []
    assert colors.startswith("rgb(22, 26, 34)rgb(255, 255, 255)")


SCROLLING = [file for file in sorted(TRAINER.glob("*/*.html.j2")) if 'class="scroll' in file.read_text()]


@pytest.mark.parametrize("template", SCROLLING, ids=lambda file: file.name)
def test_what_scrolls_is_reached_with_the_keyboard_and_has_a_name(template):
    scrolling = re.findall(r'<div class="scroll[^>]*>', template.read_text())

    assert len(SCROLLING) > 5
    assert all(re.search(r'role="region" tabindex="0" aria-label="[^"]', one) for one in scrolling)


def test_a_report_says_the_search_space_and_switches_in_words():
    spec = build(SearchSpec, shards="/shards", space=Space(head_width=(64, 128)), refit=True)

    page = render(replace(report_data(), kind="search", spec=spec.model_dump(mode="json")))

    assert "<dt>head width</dt><dd><code>64, 128</code></dd>" in page
    assert "<dt>lr</dt><dd><code>1e-05 to 0.01 on a log scale</code></dd>" in page
    assert "<dt>refit</dt><dd><code>yes</code></dd>" in page
    assert "<dt>space</dt>" not in page


def test_the_average_precision_has_its_interval():
    data = report_data(threshold=None)
    low, high = map(number_text, data.metrics["intervals"]["average_precision"])

    page = render(data)

    found = f"{number_text(data.metrics['average_precision'])} (95 % CI {low} to {high})"
    assert f'average precision "covid" {found}; band: 95 % confidence' in html.unescape(page)


@pytest.mark.parametrize(
    ("value", "percent", "number"),
    [
        (1.0, "100.0\u202f%", "1"),
        (0.99996, ">99.9\u202f%", ">0.9999"),
        (0.9994, "99.9\u202f%", "0.9994"),
        (0.00004, "<0.1\u202f%", "4e-05"),
        (0.0, "0.0\u202f%", "0"),
        (None, "–", "–"),
    ],
)
def test_only_all_and_none_are_shown_as_all_and_none(value, percent, number):
    assert (percent_text(value), number_text(value)) == (percent, number)
