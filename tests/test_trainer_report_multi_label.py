"""The report of a model with several labels per image."""

import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data_shards.index import Shard, ShardIndex
from tests.browser import CHROMIUM, RENDERED, open_browser
from tests.stack import eventually
from tests.web_page import AXE
from trainer.evaluation.calibration import Calibration, LabelCalibration
from trainer.evaluation.multi_label_metrics import multi_label_metrics
from trainer.evaluation.predictions import Predictions
from trainer.model.head import HeadConfig
from trainer.report.environment import number_text, percent_text, thousands
from trainer.report.model_card import ModelCard, render_card
from trainer.report.multi_label import MultiLabelReportData
from trainer.report.page import render

# Those of the best-known public set of chest X-rays.
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
SPLITS = {"train": 10_000, "valid": 1_200, "test": 2_500}
CUT = """[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth)
  .map(one => one.getAttribute('aria-label'))"""


def data() -> MultiLabelReportData:
    """Random predictions, of which each label's are known for most images."""
    random = np.random.default_rng(0)
    count = 1000
    targets = random.choice([-1, 0, 1], size=(count, len(LABELS)), p=[0.1, 0.7, 0.2])
    probabilities = np.clip(0.3 * targets + random.random((count, len(LABELS))), 0.01, 0.99)
    same = {name: LabelCalibration(temperature=1.0) for name in LABELS}
    metrics = multi_label_metrics(probabilities, targets, classes=LABELS, calibration=Calibration(labels=same))
    shards = tuple(
        Shard(name=f"{split}-0.tar", split=split, samples=samples, per_class=(samples // 5,) * len(LABELS),
              unknown=(samples // 10,) * len(LABELS), bytes=1, sha256="0" * 64)
        for split, samples in SPLITS.items()
    )  # fmt: skip
    return MultiLabelReportData(
        run_id="evaluate-20260102-030405-abcdef",
        kind="evaluate",
        ended="2026-01-02T03:04:05Z",
        spec={"kind": "evaluate"},
        metrics={"split": "test", **metrics},
        predictions=Predictions(ids=np.arange(count), labels=targets, probabilities=probabilities),
        index=ShardIndex(classes=LABELS, multi_label=True, shards=shards),
    )


def cells_of(page: str, label: str) -> list[list[str]]:
    """Return the cells of each row of a label, without tags."""
    rows = re.findall(rf'<tr><th scope="row">{label}</th>(.*?)</tr>', page, re.DOTALL)
    texts = [[re.sub(r"<[^>]+>", " ", cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for row in rows]
    return [[re.sub(r"[ \n]+", " ", text).strip(" ") for text in row] for row in texts]


def test_the_row_of_a_label_counts_its_images_and_those_where_it_is_unknown():
    report = data()
    row = report.metrics["labels"]["Mass"]

    metrics, _, splits = cells_of(render(report), "Mass")

    assert metrics[0] == f"{row['positives']} of {row['n']} {row['unknown']} unknown"
    assert metrics[-4:] == [
        str(row[key]) for key in ("true_positives", "false_negatives", "false_positives", "true_negatives")
    ]
    share = percent_text(0.2 / 0.9)
    assert splits == [
        f"{thousands(2000)} {share} {thousands(1000)} unknown", f"240 {share} 120 unknown", f"500 {share} 250 unknown",
    ]  # fmt: skip


def test_many_labels_are_counted_in_the_title():
    page = render(data())

    assert "<h1>14 labels</h1>" in page


def test_the_micro_mean_counts_all_known_targets():
    report = data()
    labels = report.metrics["labels"].values()

    row = cells_of(render(report), "micro mean")[0]

    present, known = sum(one["positives"] for one in labels), sum(one["n"] for one in labels)
    assert row[0] == f"{thousands(present)} of {thousands(known)}"


@pytest.mark.parametrize(
    ("positive", "titles"),
    [
        (None, ["Micro accuracy", "Macro AUROC", "Macro sensitivity", "Macro specificity"]),
        ("Mass", ["Micro accuracy", "Macro AUROC", "Sensitivity of &#34;Mass&#34;", "Specificity of &#34;Mass&#34;"]),
    ],
)
def test_the_report_begins_with_the_metrics_that_the_terminal_shows(positive, titles):
    report = data()
    of_rates = report.metrics["labels"][positive] if positive else report.metrics["macro"]
    report.metrics.update({key: of_rates[key] for key in ("sensitivity", "specificity")}, positive=positive)

    cards = re.findall(r'<div class="card">\s*<h2>(.*?)</h2>\s*<p class="value">(.*?)</p>', render(report))

    values = [report.metrics[key] for key in ("accuracy", "auroc", "sensitivity", "specificity")]
    assert [re.sub(r"<[^>]+>", "", title) for title, _ in cards] == titles
    assert [value for _, value in cards] == [
        number_text(value) if at == 1 else percent_text(value) for at, value in enumerate(values)
    ]


def test_a_model_card_has_a_row_for_each_label_too():
    report = data()
    config = HeadConfig(classes=LABELS, multi_label=True, width=512, dropout=0.4, image_size=224)
    card = ModelCard(name="m", names=(), weights="0" * 64, config=config, trained="", shards="/s", index=report.index)

    page = render_card(card)

    assert "<h1>14 labels</h1>" in page
    assert cells_of(page, "Mass")[-1] == cells_of(render(report), "Mass")[-1]


@contextmanager
def open_report(folder, width):
    """A browser that shows a report of 14 labels in a window of that many pixels."""
    (folder / "report.html").write_text(render(data()))
    with open_browser(folder / "profile") as browser:
        browser.size(width, 900)
        browser.open((folder / "report.html").as_uri())
        assert eventually(lambda: browser.evaluate(RENDERED) and browser.evaluate("!!document.querySelector('main')"))
        yield browser


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_fourteen_labels_fit_into_a_window_of_1280_pixels(tmp_path):
    with open_report(tmp_path, width=1280) as browser:
        cut = browser.evaluate(CUT)
        tables = browser.evaluate("document.querySelectorAll('.scroll').length")

    assert (cut, tables) == ([], 3)


@pytest.mark.skipif(CHROMIUM is None or AXE is None, reason="Chromium, or axe-core that AXE_CORE names, is not there")
def test_axe_finds_no_fault_of_accessibility_where_tables_scroll(tmp_path):
    with open_report(tmp_path, width=390) as browser:
        cut = browser.evaluate(CUT)
        browser.evaluate(Path(str(AXE)).read_text())
        faults = browser.evaluate("axe.run().then(found => found.violations.map(one => one.help))")

    assert (len(cut), faults) == (3, [])
