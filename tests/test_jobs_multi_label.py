"""A mock-up of NIH ChestX-ray14 through the command line and the queue: labels that depend on the pixels."""

import csv
import json

import numpy as np
import pytest
from sklearn import metrics as sk

from jobs.queue.stack import start_stack
from tests.multi_label import LABELS, multi_label_folder, write_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

IMAGES = {"train": 160, "valid": 64, "test": 64}
COLUMNS = ["--multi-label", "--label-columns", ",".join(LABELS), "--split-column", "split"]
PACKING = ["--image-size", "0", "--allow-leakage", "--processes", "1"]
TRAINING = ["--weights", "none", "--freeze", "none", "--image-size", "32", "--epochs", "12", "--lr", "3e-3"]


def test_a_multi_label_run_reaches_the_figures_of_scikit_learn_on_its_own_table(settings, say, tmp_path):
    labels = write_table(tmp_path / "Data_Entry.csv", multi_label_folder(tmp_path / "images", IMAGES))
    shards, table, exported = tmp_path / "shards", tmp_path / "table.csv", tmp_path / "model.onnx"

    done(say("shards", "pack", str(tmp_path / "images"), str(shards), "--labels", str(labels), *COLUMNS, *PACKING))
    with start_stack(settings, 1):
        trained = done(say("train", str(shards), *TRAINING, "--wait"))
        chosen = ["--positive", "Nodule", "--min-sensitivity", "0.9"]
        scored = done(say("evaluate", trained, str(shards), *chosen, "--wait"))
        rule = ["--threshold", "sensitivity-0.9"]  # predictions decide as the evaluation does
        done(say("predict", trained, str(shards), "--split", "test", *rule, "--output", str(table), "--wait"))
        done(say("export", trained, "--output", str(exported), "--wait"))
        metrics = json.loads(say("show", scored, "--json")[1])["result"]["metrics"]
    rows = rows_of(settings.storage / "runs" / scored / "predictions.csv")
    predicted = {row["file"]: row for row in rows_of(table)}

    assert metrics["auroc"] > 0.9
    assert len(rows) == len(predicted) == 64
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
        assert (found["n"], found["unknown"]) == (len(known), 64 - len(known))
    assert exported.stat().st_size > 1_000_000


def rows_of(table):
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def done(said):
    """Return what a command printed on stdout, such as a run id."""
    code, out, err = said
    assert code == 0, err
    return out.strip()
