"""Trainings on a GPU reach the losses that they reach on the CPU."""

import pytest
import torch

from cluster.files import read_lines
from tests.gpu.marks import needs_gpus
from tests.trained import done, new_run, train_spec, trainer_process

pytestmark = needs_gpus(1)

OPTIONS = {"epochs": 3, "lr": 2e-3, "batch_size": 64}


def losses(storage, shards, **options):
    """Train a model; return the training and validation losses of each epoch."""
    paths, _ = done(storage, train_spec(shards, **(OPTIONS | options)))
    return [line[name] for line in read_lines(paths.metrics) for name in ("train_loss", "valid_loss")]


@pytest.mark.parametrize("freeze", ["all", "3", "none"])
def test_the_losses_are_those_of_the_cpu(tmp_path, digits_shards, freeze):
    options = {"freeze": freeze, "precision": "fp32", "dropout": 0.0}

    on_gpu = losses(tmp_path / "gpu", digits_shards, gpus_per_worker=1, **options)

    on_cpu = losses(tmp_path / "cpu", digits_shards, gpus_per_worker=0, **options)
    assert on_gpu == pytest.approx(on_cpu, rel=0.02)


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_the_losses_in_bf16_are_near_those_in_float32(tmp_path, digits_shards, freeze):
    options = {"freeze": freeze, "dropout": 0.0}

    bf16 = losses(tmp_path / "bf16", digits_shards, precision="bf16", **options)

    float32 = losses(tmp_path / "fp32", digits_shards, precision="fp32", **options)
    assert bf16 == pytest.approx(float32, rel=0.1)


def test_a_training_holds_memory_of_the_gpu_and_leaves_none_behind(tmp_path, digits_shards):
    torch.cuda.reset_peak_memory_stats()

    paths, result = done(tmp_path, train_spec(digits_shards, freeze="none", gpus_per_worker=1))

    assert result.metrics["auroc"] is not None
    assert torch.cuda.max_memory_allocated() > 10 * 2**20
    assert paths.best.is_dir()


def test_augmented_images_are_trained_on(tmp_path, digits_shards):
    found = losses(tmp_path, digits_shards, freeze="none", augment=True, epochs=6)

    assert found[-2] < found[0]


def test_two_jobs_at_a_time_on_one_gpu_both_succeed(tmp_path, digits_shards):
    runs = [new_run(tmp_path, train_spec(digits_shards, freeze="none", seed=seed), f"run-{seed}") for seed in (1, 2)]

    trainers = [trainer_process(paths) for paths in runs]

    assert [trainer.wait(timeout=300) for trainer in trainers] == [0, 0], runs[0].log.read_text()[-2000:]
    assert all(paths.result.is_file() for paths in runs)
