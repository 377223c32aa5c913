"""A mock-up of NIH ChestX-ray14 through the command line and the queue: labels that depend on the pixels."""

import csv
import json

import numpy as np
import pytest
from sklearn import metrics as sk

from jobs.queue.stack import start_stack
from tests.multi_label import LABELS, pack_multi_label

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_multi_label_run_reaches_the_figures_of_scikit_learn_on_its_own_table(settings, say, tmp_path, monkeypatch):
    shards, _ = pack_multi_label(tmp_path, {"train": 320, "valid": 96, "test": 96}, monkeypatch)
    table, exported = tmp_path / "table.csv", tmp_path / "model.onnx"
    options = [
        "--weights",
        "none",
        "--freeze",
        "none",
        "--image-size",
        "32",
        "--epochs",
        "14",
        "--lr",
        "3e-3",
        "--wait",
    ]

    with start_stack(settings, 1):
        trained = done(say("train", str(shards), *options))
        scored = done(
            say("evaluate", trained, str(shards), "--positive", "Nodule", "--min-sensitivity", "0.9", "--wait")
        )
        done(say("predict", trained, str(shards), "--split", "test", "--output", str(table), "--wait"))
        done(say("export", trained, "--output", str(exported), "--wait"))
        metrics = json.loads(say("show", scored, "--json")[1])["result"]["metrics"]
    rows = list(csv.DictReader((settings.storage / "runs" / scored / "predictions.csv").open()))
    predicted = {row["file"]: row for row in csv.DictReader(table.open())}

    assert metrics["auroc"] > 0.9
    assert len(rows) == len(predicted) == 96
    for name in LABELS:
        known = [row for row in rows if row[f"truth_{name}"]]
        truth = np.array([int(row[f"truth_{name}"]) for row in known])
        scores = np.array([float(predicted[row["image"]][f"probability_{name}"]) for row in known])
        decided = np.array([int(predicted[row["image"]][f"decision_{name}"]) for row in known])
        found = metrics["labels"][name]
        assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-3)  # six digits in the table
        assert found["average_precision"] == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-3)
        assert found["sensitivity"] == sk.recall_score(truth, decided)
        assert found["specificity"] == sk.recall_score(truth, decided, pos_label=0)
        assert found["accuracy"] == sk.accuracy_score(truth, decided)
        assert (found["n"], found["unknown"]) == (len(known), 96 - len(known))
    assert exported.stat().st_size > 1_000_000


def done(said):
    """Return the run id that a command printed."""
    code, out, err = said
    assert code == 0, err
    return out.strip()
