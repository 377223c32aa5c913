"""A model that was trained on a GPU decides alike on the GPU, on the CPU, and as an exported file."""

import csv

import numpy as np
import pytest

from tests.gpu.marks import needs_gpus
from tests.trained import done, evaluated, train_spec
from trainer.specs import ExportSpec, PredictSpec, build

pytestmark = needs_gpus(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory, digits_shards):
    """A fine-tuned model of the digits."""
    options = {"freeze": "none", "epochs": 6, "lr": 2e-3, "precision": "fp32"}
    return done(tmp_path_factory.mktemp("trained"), train_spec(digits_shards, **options))[0].best


def probabilities(storage, model, shards, **options):
    """Predict the test split; return the probabilities of each image."""
    paths, _ = done(storage, build(PredictSpec, model=str(model), images=(str(shards),), split="test", **options))
    with paths.predicted("csv").open(newline="") as file:
        return [[float(row[f"probability_{digit}"]) for digit in range(10)] for row in csv.DictReader(file)]


def test_predict_gives_the_probabilities_of_the_cpu(tmp_path, digits_shards, model):
    on_gpu = probabilities(tmp_path / "gpu", model, digits_shards, gpus_per_worker=1)

    on_cpu = probabilities(tmp_path / "cpu", model, digits_shards, gpus_per_worker=0)
    assert len(on_gpu) > 40
    assert np.abs(np.array(on_gpu) - np.array(on_cpu)).max() < 0.01


def test_evaluate_gives_the_figures_of_the_cpu(tmp_path, digits_shards, model):
    on_gpu = evaluated(tmp_path / "gpu", model, digits_shards, gpus_per_worker=1).metrics

    on_cpu = evaluated(tmp_path / "cpu", model, digits_shards, gpus_per_worker=0).metrics
    assert on_gpu["accuracy"] == pytest.approx(on_cpu["accuracy"], abs=0.03)
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=0.01)


def test_an_exported_file_agrees_with_the_model(tmp_path, digits_shards, model):
    spec = build(ExportSpec, model=str(model), format="onnx", samples=str(digits_shards))

    _, result = done(tmp_path, spec)

    assert result.metrics["max_difference"] < 1e-3
