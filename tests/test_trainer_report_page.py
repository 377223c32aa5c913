import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cluster.run_paths import RunPaths
from data_shards.index import Shard, ShardIndex
from trainer.evaluation.calibration import predicted_classes
from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.predictions import Predictions
from trainer.report.gradcam import jpeg, overlay
from trainer.report.misclassified import worst_misclassified
from trainer.report.page import ReportData, render, write_page

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PROBE = """<script>
const images = [...document.images];
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title = JSON.stringify({
  images: images.length, broken: images.filter(i => !i.complete || !i.naturalWidth).length,
  overflow: wide, charts: [...document.querySelectorAll("svg.chart")].filter(c => c.getBBox().width > 100).length,
  errors: window.errors || []});
</script></body>"""
CATCHER = "<head><script>window.errors = []; addEventListener('error', e => errors.push(e.message), true)</script>"


def made_up(count=60, classes=("covid", "normal"), epochs=5, threshold=0.3, seed=0):
    """The data of a page about a model that errs now and then, with pictures of nothing."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(classes), count)
    logits = random.normal(size=(count, len(classes))) * 1.5
    logits[np.arange(count), labels] += 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    metrics = classification_metrics(probabilities, labels, classes=classes, positive=None, threshold=threshold)
    misclassified = worst_misclassified(
        np.arange(count),
        labels,
        predicted_classes(probabilities, positive=0, threshold=threshold),
        probabilities,
        positive=0,
    )
    ramp = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(1, 64, 64)
    picture, heat = jpeg(ramp), overlay(ramp, np.eye(64, dtype=np.float32))
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
        misclassified=[replace(mistake, image=picture, heat=heat) for mistake in misclassified],
    )


def test_the_page_needs_no_other_file_and_no_network(tmp_path):
    write_page(RunPaths(tmp_path), made_up())

    page = (tmp_path / "report.html").read_text()
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page) + re.findall(r"url\(([^)]+)\)", page)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "<script" not in page
    assert "@import" not in page
    assert len(list(tmp_path.iterdir())) == 1


def test_the_verdict_counts_what_was_missed():
    data = made_up()
    missed, positives = data.metrics["false_negatives"], int((data.predictions.labels == 0).sum())

    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", render(data)))

    assert missed > 0
    assert f"{missed} of {positives} covid images missed" in text


def test_class_names_are_text_and_never_markup():
    page = render(made_up(classes=("<script>alert(1)</script>", 'a"&b')))

    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_worst_missed_image_comes_first():
    data = made_up(count=300)
    missed = [mistake for mistake in data.misclassified if mistake.sort == "missed"]

    page = render(data)

    surest = [mistake.probabilities[0] for mistake in missed]
    assert len(missed) > 2
    assert surest == sorted(surest)
    assert [mistake.sort for mistake in data.misclassified] == sorted(
        [m.sort for m in data.misclassified], reverse=True
    )
    first, second = (page.index(f"image {mistake.id}</small>") for mistake in missed[:2])
    assert first < second


def test_the_page_says_how_many_mistakes_it_does_not_show():
    data = made_up(count=400, classes=("a", "b", "c"), threshold=None)
    wrong = sum(map(sum, data.metrics["confusion_matrix"])) - int(np.trace(data.metrics["confusion_matrix"]))

    page = render(data)

    assert sum(data.wrong.values()) == wrong
    assert data.wrong["confused"] > 12
    assert f"Other confusions <small>12 of {data.wrong['confused']}</small>" in page


def test_a_split_of_one_class_still_gives_a_page():
    data = made_up(count=6)
    only = replace(
        data,
        predictions=Predictions(
            ids=np.arange(6), labels=np.ones(6, dtype=np.int64), probabilities=data.predictions.probabilities
        ),
        metrics={
            "split": "test",
            **classification_metrics(
                data.predictions.probabilities, np.ones(6, dtype=np.int64), classes=data.classes, positive=None
            ),
        },
    )

    page = render(only)

    assert "no covid images in this split" in page
    assert "only normal stands in this split" in page
    assert "ROC curve" not in page


def test_predictions_are_read_back_as_they_were_written(tmp_path):
    written = made_up().predictions

    written.write(tmp_path / "predictions.safetensors")
    read = Predictions.read(tmp_path / "predictions.safetensors")

    for name in ("ids", "labels", "probabilities"):
        assert np.array_equal(getattr(read, name), getattr(written, name))


def test_an_overlay_colours_only_where_the_evidence_is():
    gray = np.full((1, 32, 32), 100, dtype=np.uint8)
    heat = np.zeros((32, 32), dtype=np.float32)
    heat[:, 16:] = 1.0

    pixels = np.asarray(Image.open(io.BytesIO(overlay(gray, heat))).convert("RGB")).astype(int)

    assert np.ptp(pixels[:, :12], axis=2).max() <= 12
    assert np.ptp(pixels[:, 20:], axis=2).min() > 40


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_every_image_and_chart_without_error_or_overflow(tmp_path, width):
    data = made_up(count=200, classes=tuple(f"a rather long class name {n}" for n in range(12)), threshold=None)
    page = render(data).replace("<head>", CATCHER).replace("</body>", PROBE)
    (tmp_path / "report.html").write_text(page)

    shown = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900", "--dump-dom", "--enable-logging=stderr", (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip

    reported = json.loads(re.search(r"<title>(\{.*?\})</title>", shown.stdout).group(1))
    assert reported == {"images": 2 * len(data.misclassified), "broken": 0, "overflow": 0, "charts": 5, "errors": []}
    assert "CONSOLE" not in shown.stderr
