"""A storage with two trainings and their evaluations, to compare."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.files import write_json
from cluster.run_paths import RunPaths
from jobs.runs.state import RunState, now, write_state
from tests.trained import lease_in
from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.predictions import EvaluatedSplit, Predictions, read_about

A, B = "train-20261123-203000-aaaaaa", "train-20261123-203000-bbbbbb"


OF_A, OF_B = "evaluate-20261124-203000-aaaaaa", "evaluate-20261124-203000-bbbbbb"


def succeed(storage, run_id, kind):
    paths = RunPaths.of(storage, run_id)
    paths.folder.mkdir(exist_ok=True)
    write_state(paths, RunState(id=run_id, kind=kind, state="succeeded", created=now()))
    return paths


@pytest.fixture
def say_there(say, settings):
    """Run a command on a storage with two trainings, and an evaluation of each on the test split."""
    for number, (run_id, evaluation, lr) in enumerate(((A, OF_A, 5e-4), (B, OF_B, 1e-3))):
        weights = str(number) * 64
        train = succeed(settings.storage, run_id, "train")
        write_json(train.spec, {"kind": "train", "shards": "/shards", "lr": lr, "epochs": 10})
        train.best.mkdir()
        write_json(train.best / "head.json", {})
        write_json(train.best / "manifest.json", {"files": {"model.safetensors": weights}, "run": run_id})
        evaluate = succeed(settings.storage, evaluation, "evaluate")
        write_json(evaluate.spec, {"kind": "evaluate", "model": run_id, "shards": "/shards", "split": "test"})
        for paths, split in ((train, "valid"), (evaluate, "test")):
            predictions = predictions_of(number, split, weights)
            predictions.write(paths.predictions, lease_in(paths.folder))
            metrics = classification_metrics(
                predictions.probabilities, predictions.labels, classes=("covid", "normal"), positive="covid"
            )
            write_json(paths.result, {"metrics": metrics})
    return say


def predictions_of(seed, split, weights):
    """Predictions of 24 images, 12 of each class, by a model that is better than chance."""
    labels = np.arange(24) % 2
    first = 1 / (1 + np.exp(np.random.default_rng(seed).normal(size=24) + 2 * (labels - 0.5)))
    probabilities = np.stack([first, 1 - first], axis=1)
    return Predictions(
        ids=np.arange(24),
        labels=labels,
        probabilities=probabilities,
        decisions=probabilities.argmax(axis=1),
        groups=np.arange(24),
        samples=np.arange(24, dtype=np.uint8)[:, None] + np.full((24, 16), split == "test", dtype=np.uint8),
        about=EvaluatedSplit(
            model=weights, data="d" * 64, split=split, classes=("covid", "normal"), positive="covid", threshold=None
        ),
    )


def change(storage, run_id, **changes):
    """Rewrite the predictions of an evaluation with changed arrays."""
    path = RunPaths.of(storage, run_id).predictions
    old = Predictions.read(path)
    arrays = {name: getattr(old, name) for name in ("ids", "labels", "probabilities", "decisions", "groups", "samples")}
    Predictions(**{**arrays, "about": old.about, **changes}).write(path, lease_in(path.parent))


def scored(labels, *, right):
    """Probabilities and decisions that are right for the first `right` share of the images."""
    good = np.arange(len(labels)) < right * len(labels)
    decisions = np.where(good, labels, 1 - labels)
    return {"probabilities": np.eye(2)[decisions] * 0.8 + 0.1, "decisions": decisions}


def three_classes(storage, temperatures):
    """Replace both evaluations by those of models of three classes; return the labels and probabilities of each."""
    labels, made = np.arange(24) % 3, []
    for number, (run, temperature) in enumerate(zip((OF_A, OF_B), temperatures, strict=True)):
        logits = np.random.default_rng(number).normal(scale=3, size=(24, 3)) + 2 * np.eye(3)[labels]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        about = read_about(RunPaths.of(storage, run).predictions)
        about = replace(about, classes=("covid", "normal", "viral"), temperature=temperature)
        decisions = probabilities.argmax(axis=1)
        change(storage, run, labels=labels, probabilities=probabilities, decisions=decisions, about=about)
        made.append(probabilities)
    return labels, made
